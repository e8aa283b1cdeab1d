/** How the page writes numbers. */

const NAMES = ["C", "C♯", "D", "E♭", "E", "F", "F♯", "G", "A♭", "A", "B♭", "B"];

/** Middle C (60) is C4. */
export const pitchName = (pitch: number): string => `${NAMES[pitch % 12]}${Math.floor(pitch / 12) - 1}`;

export const isBlack = (pitch: number): boolean => [1, 3, 6, 8, 10].includes(pitch % 12);

/** Seconds as m:ss. */
export function clock(seconds: number): string {
  const whole = Math.max(0, Math.floor(seconds));
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

/** Layers counted from 0, written from 1: "layer 1", "layers 3–8", "layers 1, 4, 7", "12 layers". */
export function layersText(layers: readonly number[]): string {
  const [first, last] = [Math.min(...layers) + 1, Math.max(...layers) + 1];
  if (layers.length === 1) return `layer ${first}`;
  if (last - first + 1 === layers.length) return `layers ${first}–${last}`;
  return layers.length <= 4
    ? `layers ${layers.map((layer) => layer + 1).join(", ")}`
    : `${layers.length} layers`;
}

export const count = (value: number): string => value.toLocaleString("en");

export const plural = (value: number, thing: string): string =>
  `${count(value)} ${thing}${value === 1 ? "" : "s"}`;

export function bytesText(bytes: number): string {
  if (bytes >= 1e6) return `${(bytes / 1e6).toFixed(bytes >= 1e7 ? 0 : 1)} MB`;
  return `${Math.max(1, Math.round(bytes / 1e3))} kB`;
}

/** Milliseconds with two digits that count. */
export function milliseconds(value: number): string {
  return `${value >= 100 ? Math.round(value) : value.toFixed(value >= 10 ? 0 : 1)} ms`;
}
