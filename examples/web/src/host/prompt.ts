/** How a prompt is heard. */

import type { Paced } from "./grammar";
import type { Stream } from "./stream";

/** Tokens of one call: longer ones are hardly faster. */
const SEGMENT = 128;

/** Feeds ids that somebody else played, in segments. heard: told after each of them; progress: how many were fed. */
export function hear(
  stream: Stream,
  mask: Paced,
  ids: readonly number[],
  heard?: () => void,
  progress?: (done: number) => void,
): void {
  for (let start = 0; start < ids.length; start += SEGMENT) {
    const segment = ids.slice(start, start + SEGMENT);
    stream.feed(segment);
    for (const id of segment) {
      mask.advance(id);
      heard?.();
    }
    progress?.(start + segment.length);
  }
}
