/** A tick that goes on in a tab that is not seen, whose own timers come once a second. */

export const TICK_MS = 25;

export interface Ticker {
  onTick: () => void;
  /** Starts or ends it; told twice, it does nothing. */
  run(on: boolean): void;
}

export class WorkerTicker implements Ticker {
  onTick = () => {};
  private readonly worker = new Worker(new URL("./tick_worker.ts", import.meta.url), { type: "module" });
  private runs = false;

  constructor() {
    this.worker.onmessage = () => this.runs && this.onTick();
  }

  run(on: boolean): void {
    if (on === this.runs) return;
    this.runs = on;
    this.worker.postMessage(on ? TICK_MS : 0);
  }
}
