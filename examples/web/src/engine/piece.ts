/** The piece: its beginnings, its phrases and answers, and the ways back. One thing after the other. */

import { HostError } from "../host/errors";
import type { Sampling } from "../host/sampling";
import { PLAYER, type RequestName, type Requests } from "../protocol";
import type { RollNote, Settings } from "../view";
import { History, nameOf, type Way } from "./history";
import { notesOf, settingsOf } from "./saved_extra";
import type { Stage } from "./stage";

/** What the music waited for the model is said from here on; less stands among the figures. */
const LATE_SAID_S = 0.1;

/** What a piece needs of the session. */
export interface Host {
  readonly settings: Settings;
  /** Rejects with HostError; also where there is no bundle. */
  request<N extends RequestName>(kind: N, args: Requests[N]["args"]): Promise<Requests[N]["result"]>;
  /** Whether there is a bundle, and a worker that has it. */
  readonly alive: boolean;
  set(settings: Partial<Settings>): void;
  notice(text: string): void;
  /** The memory was elsewhere, and is not any more. */
  arrived(): void;
}

export class Piece {
  readonly history = new History();
  /** The player's next key begins a phrase: it is marked. */
  private phraseBegins = true;
  /** Counts stops: what was asked for before one is not begun after it. */
  private stops = 0;
  private busy: Promise<unknown> = Promise.resolve();
  private lateSaid = false;

  constructor(
    private readonly stage: Stage,
    private readonly host: Host,
  ) {}

  /** Of another bundle: nothing to come back to. */
  clear(): void {
    this.history.clear();
    this.phraseBegins = true;
  }

  /** One after the other, in the order of asking. */
  inTurn<T>(act: () => Promise<T>): Promise<T> {
    const turn = this.busy.then(act);
    this.busy = turn.catch(() => {});
    return turn;
  }

  begin(): Promise<void> {
    return this.travel(async () => {
      this.arrive((await this.host.request("begin", {})).frame, []);
    });
  }

  file(name: string, data: ArrayBuffer): Promise<void> {
    return this.travel(async () => {
      const { frame, notes, leftOut } = await this.host.request("file", { name, data });
      const heard: RollNote[] = notes.map((note) => ({ ...note, by: PLAYER }));
      this.arrive(frame, heard);
      if (leftOut > 0) {
        const count = leftOut === 1 ? "1 note was" : `${leftOut} notes were`;
        this.host.notice(`${count} left out of ${name}: the model has no word for a pitch so high or low.`);
      }
    });
  }

  load(name: string, data: ArrayBuffer): Promise<void> {
    return this.travel(async () => {
      const { frame, extra } = await this.host.request("load", { name, data });
      this.arrive(frame, notesOf(extra), false);
      this.host.set(settingsOf(extra));
    });
  }

  undo(): Promise<void> {
    return this.inTurn(async () => {
      if (!this.history.canUndo) throw new HostError("input", "There is nothing to take back.");
      this.stage.leave();
      try {
        const mark = this.history.pop();
        const { frame } = await this.host.request("undo", { keep: false });
        this.arrive(frame, mark?.notes ?? []);
      } finally {
        this.host.arrived();
      }
    });
  }

  answer(): Promise<void> {
    const { stops } = this;
    return this.inTurn(async () => {
      if (this.stage.phase !== "listening" || stops !== this.stops) return;
      if (!this.host.alive) throw new HostError("input", "There is no bundle yet: open one first.");
      const at = this.stage.advance();
      this.stage.release(at);
      this.mark(at);
      const { seed, sampling } = this.host.settings;
      const way = { name: nameOf(0), seed, sampling };
      await this.goOn(at, [way], way);
    });
  }

  vary(name?: string): Promise<void> {
    const { stops } = this;
    return this.inTurn(async () => {
      const { answer } = this.history;
      const mark = this.history.latest();
      if (!answer || !mark) throw new HostError("input", "There is no answer to vary: ask for one first.");
      if (stops !== this.stops) return;
      const { ways, frame } = answer;
      const way = this.wayOf(ways, name);
      this.stage.leave();
      // The worker does one after the other: no need to wait for the first.
      const back = this.host.request("undo", { keep: true });
      this.stage.arrive(frame, mark.notes);
      const all = ways.includes(way) ? ways : [...ways, way];
      await Promise.all([back, this.goOn(this.stage.advance(), all, way, frame)]);
    });
  }

  stop(): void {
    this.stops++;
    this.stage.silence();
  }

  /** The player's key ends an answer; the first after one begins a phrase. */
  struck(at: number): void {
    this.stage.end(at, "release");
    this.history.answer = null;
    if (this.phraseBegins) this.mark(at);
    this.phraseBegins = false;
  }

  /** The music waits for the model: said once an answer. */
  late(seconds: number): void {
    if (this.lateSaid || seconds < LATE_SAID_S) return;
    this.lateSaid = true;
    const ms = Math.round(seconds * 1000);
    this.host.notice(`The model was ${ms} ms late: the music waited for it, and goes on so much later.`);
  }

  /** From the next token on. */
  sample(sampling: Sampling): void {
    this.host.request("sampling", { sampling, pace: null }).catch((error) => {
      if (this.host.alive) this.host.notice((error as Error).message);
    });
  }

  /** A way that is known by its name, or the next new one. */
  private wayOf(ways: readonly Way[], name: string | undefined): Way {
    const { seed, sampling } = this.host.settings;
    if (name === undefined) return { name: nameOf(ways.length), seed: seed + ways.length, sampling };
    const known = ways.find((way) => way.name === name);
    if (known) return known;
    const names = ways.map((way) => way.name).join(", ");
    throw new HostError("input", `There is no variation ${name}: this answer has ${names}.`);
  }

  /** Remembers this moment, here as in the worker. */
  private mark(at: number): void {
    this.stage.settle(at);
    const depth = this.history.push(this.stage.roll.notes);
    const marked = this.host.request("mark", {});
    marked.then(({ marks }) => this.history.trim(depth, marks)).catch(() => {}); // its end is told of
  }

  /** The model goes on in this way: one of those of this answer. from: a frame that it began at before. */
  private async goOn(at: number, ways: readonly Way[], way: Way, from?: number): Promise<void> {
    const { take, frame } = this.stage.think(at, from);
    this.history.answer = { frame, ways, current: way.name };
    this.phraseBegins = true;
    this.lateSaid = false;
    this.sample(way.sampling);
    try {
      const begun = await this.host.request("answer", { frame, take, seed: way.seed });
      this.stage.answered(take, begun.frame);
    } catch (error) {
      this.stage.end(this.stage.advance(), "cut");
      throw error;
    }
  }

  /** Goes elsewhere, with a mark to come back to; where that fails, nothing has changed. */
  private travel(go: () => Promise<void>): Promise<void> {
    return this.inTurn(async () => {
      if (!this.host.alive) throw new HostError("input", "There is no bundle yet: open one first.");
      const { answer } = this.history;
      this.stage.leave();
      this.mark(this.stage.advance());
      try {
        await go();
      } catch (error) {
        if (this.host.alive) {
          await this.unmark();
          this.history.answer = answer;
        }
        throw error;
      } finally {
        this.host.arrived();
      }
    });
  }

  /** The latest mark is of no use: the memory is still there. */
  private async unmark(): Promise<void> {
    this.history.pop();
    await this.host.request("undo", { keep: false });
  }

  private arrive(frame: number, notes: readonly RollNote[], settled = true): void {
    this.history.answer = null;
    this.phraseBegins = true;
    this.stage.arrive(frame, notes, settled);
  }
}
