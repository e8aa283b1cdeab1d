import type { RollNote } from "../view";

/** Where the present stands, as a share of the width. */
const PRESENT = 0.78;
const [SHORTEST_S, LONGEST_S] = [3, 900];
const LEAST_PITCHES = 36;
const MARGIN = 2;
/** In which the pitches come most of the way to where they should be. */
const SETTLE_S = 0.25;

/** The part of the piece that is on the screen. Times in seconds; pitches with fractions while they move. */
export class RollWindow {
  spanS = 15;
  lowest = 42;
  highest = 78;
  /** Time at the left edge where somebody looked back; null: the present stands still and the music moves. */
  private held: number | null = null;

  get follows(): boolean {
    return this.held === null;
  }

  left(now: number): number {
    return this.held ?? now - PRESENT * this.spanS;
  }

  follow(): void {
    this.held = null;
  }

  /** Moves the view by seconds, between the beginning and the present. */
  move(seconds: number, now: number): void {
    const present = now - PRESENT * this.spanS;
    const left = Math.max(Math.min(this.left(now) + seconds, present), Math.min(present, -0.05 * this.spanS));
    this.held = left >= present - 1e-6 ? null : left;
  }

  /** Shows `factor` times as much time: around the present, or around the middle of where somebody looks. */
  zoom(factor: number, now: number): void {
    const spanS = Math.min(LONGEST_S, Math.max(SHORTEST_S, this.spanS * factor));
    const middle = this.left(now) + this.spanS / 2;
    const { follows } = this;
    this.spanS = spanS;
    if (!follows) {
      this.held = middle - spanS / 2;
      this.move(0, now);
    }
  }

  /**
   * Brings the pitches nearer to those of the notes in view, `elapsed` seconds after the last time (Infinity: at
   * once). Returns whether they are still on their way.
   */
  settle(notes: Iterable<RollNote>, range: readonly [number, number], elapsed: number): boolean {
    let [low, high] = [128, -1];
    for (const { pitch } of notes) {
      if (pitch < low) low = pitch;
      if (pitch > high) high = pitch;
    }
    if (high < 0) [low, high] = [this.lowest + MARGIN, this.highest - MARGIN];
    [low, high] = [low - MARGIN, high + MARGIN];
    const short = LEAST_PITCHES - (high - low);
    if (short > 0) [low, high] = [low - short / 2, high + short / 2];
    const [least, most] = [range[0] - MARGIN, Math.max(range[1] + MARGIN, range[0] + LEAST_PITCHES)];
    if (low < least) [low, high] = [least, Math.max(high, least + LEAST_PITCHES)];
    if (high > most) [low, high] = [Math.min(low, most - LEAST_PITCHES), most];
    return this.approach(Math.floor(low), Math.ceil(high), elapsed);
  }

  private approach(low: number, high: number, elapsed: number): boolean {
    const share = 1 - Math.exp(-elapsed / SETTLE_S);
    this.lowest += (low - this.lowest) * share;
    this.highest += (high - this.highest) * share;
    const moving = Math.abs(low - this.lowest) + Math.abs(high - this.highest) > 0.05;
    if (!moving) [this.lowest, this.highest] = [low, high];
    return moving;
  }
}
