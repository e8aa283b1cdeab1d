/** How long things took: quantiles of the latest, the most and the count of all. */

import type { Spread } from "../view";

const KEPT = 2048;

export class Timings {
  private readonly latest = new Float64Array(KEPT);
  private count = 0;
  private most = 0;
  private made: Spread | null = null;

  /** Below 0 counts as 0: nothing is too early. */
  add(seconds: number): void {
    const ms = Math.max(seconds, 0) * 1000;
    this.latest[this.count++ % KEPT] = ms;
    this.most = Math.max(this.most, ms);
    this.made = null;
  }

  spread(): Spread | null {
    if (!this.count) return null;
    if (!this.made) {
      const sorted = this.latest.slice(0, Math.min(this.count, KEPT)).sort();
      const at = (share: number) => sorted[Math.min(Math.floor(share * sorted.length), sorted.length - 1)];
      this.made = { p50: at(0.5), p99: at(0.99), max: this.most, count: this.count };
    }
    return this.made;
  }
}
