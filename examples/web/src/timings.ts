/** How long things took: quantiles of the latest, the most and the count of all. */

/** Milliseconds. */
export interface Spread {
  readonly p50: number;
  readonly p99: number;
  readonly max: number;
  readonly count: number;
}

export class Timings {
  private readonly latest: Float64Array;
  private count = 0;
  private most = 0;
  private made: Spread | null = null;

  /** kept: of how many the quantiles are. */
  constructor(kept = 2048) {
    this.latest = new Float64Array(kept);
  }

  /** Below 0 counts as 0: nothing is too early. */
  add(ms: number): void {
    const taken = Math.max(ms, 0);
    this.latest[this.count++ % this.latest.length] = taken;
    this.most = Math.max(this.most, taken);
    this.made = null;
  }

  /** null before the first. */
  spread(): Spread | null {
    if (!this.count) return null;
    if (!this.made) {
      const sorted = this.latest.slice(0, Math.min(this.count, this.latest.length)).sort();
      const at = (share: number) => sorted[Math.min(Math.floor(share * sorted.length), sorted.length - 1)];
      this.made = { p50: at(0.5), p99: at(0.99), max: this.most, count: this.count };
    }
    return this.made;
  }
}
