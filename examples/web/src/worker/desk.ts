/** What the worker does for each message: one bundle, one memory, the marks to come back to. */

import type { Bundle } from "../host/bundle";
import { HostError } from "../host/errors";
import { encode } from "../host/events";
import { type Files, filesAt, filesInFolder, filesInZip, filesInZipAt } from "../host/files";
import { openBundle, openStream } from "../host/host";
import { Memory, type Moment, PLAN_TOKENS } from "../host/memory";
import { readMidi } from "../host/midi";
import { ORT_VERSION } from "../host/onnxruntime";
import { readState, writeState } from "../host/saved_state";
import type { Stream } from "../host/stream";
import { PLAYER } from "../host/tracks";
import type {
  FromWorker,
  Horizon,
  Opened,
  Requests,
  Sounded,
  Source,
  ToWorker,
  WorkerStatus,
} from "../protocol";
import { Timings } from "../timings";
import { memo } from "./memo";

/** The first note of an answer comes within so much of its beginning. */
const OPENING_S = 0.5;
/** A plan that takes the place of another begins so much later than the present: behind all that the page may have
 * handed to the sound meanwhile (80 ms ahead, and the way there and back). */
const ANEW_S = 0.2;
/** Tokens between two looks into the inbox. */
const AT_ONCE = 8;
/** Marks are whole states: so many bytes of them are kept, and four in any case. */
const MARKS_BYTES = 128e6;
const STATUS_EVERY_MS = 100;
/** The figures of a token are of so many. */
const STEPS_KEPT = 1024;

type Message<N extends keyof Requests> = Extract<ToWorker, { kind: N }>;
type Post = (message: FromWorker) => void;

/** A moment to come back to. frame: of the present, later than its last token where a rest goes on. */
interface Mark {
  readonly moment: Moment;
  readonly frame: number;
}

export class Desk {
  private memory: Memory | null = null;
  private marks: Mark[] = [];
  private answer: { take: number; earliest: number; opening: number | null; anew: boolean } | null = null;
  private until = 0;
  private statusAt = 0;
  private readonly stepMs = new Timings(STEPS_KEPT);

  constructor(private readonly post: Post) {}

  /** Does what a message asks. Throws HostError, with nothing changed. */
  async handle(message: ToWorker): Promise<{ result: unknown; transfer: Transferable[] }> {
    const result = await this.dispatch(message);
    if (message.kind !== "time") this.tellStatus();
    return { result, transfer: message.kind === "save" ? [(result as { data: ArrayBuffer }).data] : [] };
  }

  /** Plans a little further; false where there is nothing to plan. */
  planSome(): boolean {
    const { memory, answer } = this;
    if (!memory || !answer || !this.wanted(memory)) return false;
    const events = [];
    for (let made = 0; made < AT_ONCE && this.wanted(memory); made++) {
      const began = performance.now();
      events.push(...memory.plan(1, answer.earliest, answer.opening, this.until));
      this.stepMs.add(performance.now() - began);
    }
    if (events.length) answer.opening = null;
    this.post({ kind: "planned", take: answer.take, events, reached: memory.planFrame, anew: answer.anew });
    answer.anew = false;
    this.tellStatusNowAndThen();
    return true;
  }

  private wanted(memory: Memory): boolean {
    return memory.planFrame <= this.until && memory.planLength < PLAN_TOKENS;
  }

  private dispatch(message: ToWorker): unknown {
    switch (message.kind) {
      case "sounded":
        return this.hear(message.events);
      case "time":
        return this.pass(message.certain, message.until);
      case "open":
        return this.open(message);
      case "begin":
        this.stopped.begin();
        return { frame: this.present.frame };
      case "file":
        return this.file(message);
      case "mark":
        return this.mark();
      case "undo":
        return this.undo(message.keep);
      case "answer":
        return this.begin(message);
      case "stop":
        return { frame: this.stopped.frame };
      case "release":
        this.noteKept(this.present.release(message.frame, PLAYER));
        return { frame: this.present.frame };
      case "sampling":
        this.present.set(message.sampling, message.pace);
        return {};
      case "save":
        return this.save(message);
      case "load":
        return this.load(message);
      case "peek":
        return this.stopped.peek(message.tokens);
    }
  }

  private get present(): Memory {
    if (!this.memory) throw new HostError("input", "There is no bundle yet: open one first.");
    return this.memory;
  }

  /** The memory, with nothing planned. */
  private get stopped(): Memory {
    const memory = this.present;
    this.answer = null;
    this.until = 0;
    memory.forgetPlan();
    return memory;
  }

  private async open({ source, graph }: Message<"open">): Promise<Opened> {
    this.progress("Reading the bundle", 0, 3);
    const files = await filesOf(source);
    const bundle = await openBundle(files);
    this.progress("Loading the model and trying it", 1, 3);
    const { stream, reason } = await openStream(bundle, graph, memo);
    this.progress("Beginning", 2, 3);
    const memory = begun(bundle, stream);
    this.memory?.stream.free();
    [this.memory, this.marks, this.answer] = [memory, [], null];
    this.progress("Ready", 3, 3);
    return described(bundle, memory, reason, this.status());
  }

  private async file({ name, data }: Message<"file">): Promise<Requests["file"]["result"]> {
    const { table } = this.present.bundle;
    const { notes, dropped } = readMidi(new Uint8Array(data), name, table.pitchRange, table.stepMs);
    const ids = encode(notes, table);
    const memory = this.stopped;
    memory.begin(ids, (done) => this.progress(`Listening to ${name}`, done, ids.length + 1));
    return { frame: memory.frame, notes, leftOut: dropped };
  }

  private hear(events: readonly Sounded[]): void {
    const memory = this.present;
    for (const { frame, kind, pitch, value, channel, by } of events) {
      if (kind === "on") this.noteKept(memory.noteOn(frame, pitch, value, channel, by));
      else if (kind === "off") this.noteKept(memory.noteOff(frame, pitch, channel, by));
      else if (kind === "pedal") this.noteKept(memory.pedal(frame, value, channel));
      else this.noteKept(memory.allOff(frame, channel));
    }
  }

  private pass(certain: number, until: number): void {
    if (!this.memory) return;
    this.until = until;
    this.noteKept(this.memory.advance(certain));
    this.tellStatusNowAndThen();
  }

  /** Where something else sounded than was planned, the plan begins anew. */
  private noteKept(kept: boolean): void {
    if (kept || !this.answer) return;
    this.answer.anew = true;
    this.answer.earliest = this.present.frame + this.present.frames(ANEW_S);
  }

  private mark(): Requests["mark"]["result"] {
    const memory = this.present;
    this.marks.push({ moment: memory.moment(), frame: memory.frame });
    const most = Math.max(4, Math.floor(MARKS_BYTES / memory.stream.stateBytes));
    this.marks.splice(0, this.marks.length - most);
    return { marks: this.marks.length };
  }

  private undo(keep: boolean): Requests["undo"]["result"] {
    const memory = this.stopped;
    const mark = this.marks.at(-1);
    if (!mark) throw new HostError("input", "There is nothing to take back.");
    memory.restore(mark.moment);
    memory.advance(mark.frame);
    if (!keep) this.marks.pop();
    return { frame: memory.frame, marks: this.marks.length };
  }

  private begin({ frame, take, seed }: Message<"answer">): Requests["answer"]["result"] {
    const memory = this.stopped;
    if (seed !== undefined) memory.reseed(seed);
    memory.release(Math.max(frame, memory.frame), PLAYER);
    memory.settle();
    const earliest = memory.frame;
    const opening = earliest + memory.frames(OPENING_S);
    this.answer = { take, earliest, opening, anew: false };
    this.until = Math.max(this.until, opening);
    return { frame: earliest };
  }

  private async save({ name, extra }: Message<"save">): Promise<Requests["save"]["result"]> {
    const memory = this.present;
    const state = { moment: memory.moment(), name, extra: { web: extra } };
    return { data: (await writeState(memory.bundle, state)).buffer };
  }

  private async load({ name, data }: Message<"load">): Promise<Requests["load"]["result"]> {
    const state = await readState(this.present.bundle, new Uint8Array(data), name);
    const memory = this.stopped;
    memory.restore(state.moment);
    return { frame: memory.frame, extra: state.extra.web ?? null };
  }

  private progress(what: string, done: number, of: number): void {
    this.post({ kind: "progress", what, done, of });
  }

  private tellStatus(): void {
    if (!this.memory) return;
    this.statusAt = performance.now();
    this.post({ kind: "status", status: this.status() });
  }

  private tellStatusNowAndThen(): void {
    if (performance.now() - this.statusAt > STATUS_EVERY_MS) this.tellStatus();
  }

  private status(): WorkerStatus {
    const memory = this.present;
    return {
      position: memory.position,
      frame: memory.frame,
      horizons: horizonsOf(memory),
      stepMs: this.stepMs.spread(),
      marks: this.marks.length,
    };
  }
}

/** A memory on a stream, which is let go where that fails. */
function begun(bundle: Bundle, stream: Stream): Memory {
  try {
    return new Memory(bundle, stream);
  } catch (error) {
    stream.free();
    throw error;
  }
}

function filesOf(source: Source): Promise<Files> | Files {
  if (source.kind === "zip") return filesInZip(source.data, source.name);
  if (source.kind === "folder") return filesInFolder(source.files, source.name);
  return /\.zip($|\?)/.test(source.url) ? filesInZipAt(source.url) : filesAt(source.url);
}

/** Layers with the same horizon, the longest first, and since when they remember. */
function horizonsOf(memory: Memory): Horizon[] {
  const byTokens = new Map<number, number[]>();
  memory.bundle.manifest.schedule.horizons.forEach((tokens, layer) => {
    byTokens.set(tokens, [...(byTokens.get(tokens) ?? []), layer]);
  });
  const groups = [...byTokens].sort(([a], [b]) => b - a);
  return groups.map(([tokens, layers]) => ({ layers, tokens, from: memory.since(tokens) }));
}

function described(bundle: Bundle, memory: Memory, reason: string, status: WorkerStatus): Opened {
  const { manifest, table } = bundle;
  const { graph, stateBytes } = memory.stream;
  return {
    name: bundle.name,
    identity: bundle.identity,
    graph,
    reason,
    stepMs: table.stepMs,
    pitchRange: table.pitchRange,
    horizons: manifest.schedule.horizons,
    budgetTokens: manifest.schedule.budget_tokens,
    stateBytes,
    modelBytes: bundle.graph(graph).bytes,
    licence: manifest.provenance?.licence ?? "",
    trainedOn: manifest.provenance?.data ?? "",
    runtime: { version: ORT_VERSION, threads: 1, simd: true },
    status,
  };
}
