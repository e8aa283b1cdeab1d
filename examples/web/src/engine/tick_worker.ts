/** Says "now" every so many milliseconds; 0: no more. */

let timer = 0;

self.onmessage = ({ data: everyMs }: MessageEvent<number>) => {
  clearInterval(timer);
  if (everyMs > 0) timer = setInterval(() => self.postMessage(null), everyMs) as unknown as number;
};
