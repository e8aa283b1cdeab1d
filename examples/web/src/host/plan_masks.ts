/** Which tokens a plan may have next: what the grammar allows, of the model's own notes, in time. */

import type { EventTable } from "./events";
import type { Paced } from "./grammar";

export class PlanMasks {
  /** Steps of each id that is a shift, 0 for all others. */
  private readonly steps: Int32Array;
  private readonly out: Uint8Array;
  private readonly soon: Uint8Array;

  constructor(private readonly table: EventTable) {
    this.steps = Int32Array.from(table.kinds, (kind, id) =>
      kind === "shift" ? Number(table.values[id]) : 0,
    );
    this.out = new Uint8Array(table.length);
    this.soon = new Uint8Array(table.length);
  }

  /**
   * One entry for each id, 1 = allowed; a buffer that the next call overwrites.
   *
   * player: pitches that are not the model's to end. earliest: the frame before which nothing may sound. firstBy:
   * the frame by which the first note must come, or null.
   */
  allowed(mask: Paced, player: readonly number[], earliest: number, firstBy: number | null): Uint8Array {
    const { out, steps, table } = this;
    out.set(mask.allowed);
    for (const pitch of player) out[table.offIds.get(pitch) as number] = 0;
    const wait = earliest - mask.frame;
    if (wait > 0) {
      // The time until then has passed in silence: only a shift over it agrees with that.
      this.keep((id) => steps[id] >= wait || steps[id] === table.longestShift);
    }
    if (firstBy !== null) this.openBy(Math.max(firstBy - mask.frame, 0), wait);
    // Every key held by the player, say: then time passes.
    if (!out.includes(1)) for (let id = 0; id < out.length; id++) out[id] = Number(steps[id] > 0);
    return out;
  }

  /** Only what sounds within `most` steps; and once the wait is over, no shift where anything else may come. */
  private openBy(most: number, wait: number): void {
    const { out, soon, steps } = this;
    for (let id = 0; id < out.length; id++) soon[id] = out[id] && steps[id] <= most ? 1 : 0;
    if (soon.includes(1)) out.set(soon);
    if (wait <= 0 && out.some((allowed, id) => allowed === 1 && steps[id] === 0))
      this.keep((id) => steps[id] === 0);
  }

  private keep(test: (id: number) => boolean): void {
    for (let id = 0; id < this.out.length; id++) if (!test(id)) this.out[id] = 0;
  }
}
