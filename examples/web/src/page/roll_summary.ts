import { MODEL } from "../protocol";
import type { View } from "../view";
import { element, write } from "./elements";
import { secondsPerFrameOf } from "./roll";
import { clock, layersText, pitchName, plural } from "./wording";

const EVERY_MS = 3000;
const LATEST = 6;

/** The roll in words, for those who do not see it. Written anew every few seconds at most. */
export class RollSummary {
  private readonly where = element("roll-summary", HTMLParagraphElement);
  private writtenAt = Number.NEGATIVE_INFINITY;
  private waiting = 0;

  show(view: () => View): void {
    if (this.waiting) return;
    const due = Math.max(0, this.writtenAt + EVERY_MS - performance.now());
    this.waiting = window.setTimeout(() => {
      this.waiting = 0;
      this.writtenAt = performance.now();
      write(this.where, inWords(view()));
    }, due);
  }
}

function inWords(view: View): string {
  const seconds = secondsPerFrameOf(view);
  if (view.notes.length === 0) return "Nothing was played yet.";
  const played = view.notes.filter(({ by }) => by === MODEL).length;
  const latest = view.notes.slice(-LATEST).map(({ pitch }) => pitchName(pitch));
  const memory = view.horizons.map(
    ({ layers, from }) => `${layersText(layers)} remember since ${clock(from * seconds)}`,
  );
  return [
    `At ${clock(view.now * seconds)}: ${plural(view.notes.length - played, "note")} heard, ${played} by the model.`,
    `The latest: ${latest.join(", ")}.`,
    memory.length > 0 ? `Memory: ${memory.join("; ")}.` : "",
  ].join(" ");
}
