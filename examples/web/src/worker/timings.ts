/** How long the latest steps took. */

const KEPT = 1024;

export class Timings {
  private readonly latest = new Float32Array(KEPT);
  private count = 0;

  /** now: milliseconds. */
  constructor(private readonly now: () => number) {}

  /** Times what `run` does, as so many tokens. */
  measure<T>(tokens: () => number, run: () => T): T {
    const [before, began] = [tokens(), this.now()];
    const result = run();
    const made = tokens() - before;
    if (made > 0) this.latest[this.count++ % KEPT] = (this.now() - began) / made;
    return result;
  }

  spread(): { p50: number; p99: number; count: number } | null {
    if (!this.count) return null;
    const sorted = this.latest.slice(0, Math.min(this.count, KEPT)).sort();
    const at = (share: number) => sorted[Math.min(Math.floor(share * sorted.length), sorted.length - 1)];
    return { p50: at(0.5), p99: at(0.99), count: this.count };
  }
}
