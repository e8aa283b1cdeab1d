/** The session: what the page can see and ask for, put together from the worker, the piece and its stage, the sound,
 * MIDI, and what is kept in this browser. */

import { HostError } from "../host/errors";
import { SAMPLING } from "../host/memory";
import { writeMidi } from "../host/midi";
import type { FromWorker, Opened, RequestName, Requests, Source, WorkerStatus } from "../protocol";
import type { Phase, SavedEntry, Session, Settings, View } from "../view";
import { Sound } from "./audio";
import { Bell } from "./bell";
import { Client, type WorkerLike } from "./client";
import { Timebase } from "./clock";
import { MidiPorts } from "./midi_ports";
import { type Host, Piece } from "./piece";
import type { Act } from "./player";
import { extraOf } from "./saved_extra";
import { Stage } from "./stage";
import { States } from "./states";
import { type Ticker, WorkerTicker } from "./ticker";

/** What a session is made of; tests put their own in. */
export interface Deps {
  readonly time: Timebase;
  readonly ticker: Ticker;
  readonly sound: Sound;
  readonly midi: MidiPorts;
  readonly states: States;
  readonly worker: () => WorkerLike;
}

const SETTINGS: Settings = {
  sampling: SAMPLING,
  seed: 1,
  answerAfterS: null,
  volume: 0.8,
  sound: "built-in",
};

export function createSession(deps: Partial<Deps> = {}): WebSession {
  const time = deps.time ?? new Timebase();
  return new WebSession({
    time,
    ticker: deps.ticker ?? new WorkerTicker(),
    sound: deps.sound ?? new Sound(time),
    midi: deps.midi ?? new MidiPorts(),
    states: deps.states ?? new States(),
    worker: deps.worker ?? (() => new Worker(new URL("../worker.ts", import.meta.url), { type: "module" })),
  });
}

export class WebSession implements Session, Host {
  settings = SETTINGS;
  private readonly bell = new Bell();
  private readonly stage: Stage;
  private readonly piece: Piece;
  private client: Client | null = null;
  private opened: Opened | null = null;
  private status: WorkerStatus | null = null;
  private opening = false;
  private progress: View["progress"] = null;

  constructor(private readonly deps: Deps) {
    const { sound, midi, ticker, time } = deps;
    this.stage = new Stage(
      time,
      {
        begin: (pitch, velocity, at) => sound.begin(pitch, velocity, at),
        silence: () => sound.silence(),
        note: (pitch, velocity, at) => midi.note(pitch, velocity, at),
        quiet: () => midi.silence(),
      },
      {
        tell: (message) => this.client?.tell(message),
        release: (frame) => this.ask("release", { frame }),
        stop: () => this.ask("stop", {}),
        struck: (at) => this.piece.struck(at),
        late: (seconds) => this.piece.late(seconds),
        changed: () => this.changed(),
      },
    );
    this.piece = new Piece(this.stage, this);
    sound.set(this.settings.volume, true);
    sound.onChange = midi.onChange = () => this.changed();
    sound.onProblem = (text) => this.notice(text);
    midi.onLost = (name) => this.keyboardLost(name);
    midi.onAct = (act, at, input) => this.act(act, input, at);
    ticker.onTick = () => this.tick();
  }

  // What is shown

  view(): View {
    const { stage, opened, status, settings, progress } = this;
    const { history } = this.piece;
    const { sound, midi } = this.deps;
    return {
      phase: this.phase,
      opened,
      progress,
      now: stage.now,
      notes: stage.roll.notes,
      coming: stage.playback.coming,
      horizons: status?.horizons ?? [],
      position: status?.position ?? 0,
      variations: history.variations,
      canUndo: opened !== null && history.canUndo,
      stepMs: status?.stepMs ?? null,
      answerMs: stage.answers.spread(),
      latenessMs: stage.playback.lateness.spread(),
      waits: stage.playback.waits,
      soundMs: sound.latencyMs,
      soundOn: sound.on,
      inputs: midi.inputs,
      outputs: midi.outputs,
      midiProblem: midi.problem,
      settings,
      sounding: stage.roll.sounding,
    };
  }

  onChange(listener: () => void): () => void {
    return this.bell.onChange(listener);
  }

  onNotice(listener: (text: string) => void): () => void {
    return this.bell.onNotice(listener);
  }

  // For tests

  /** The highest amplitude of the last 20 ms. */
  level(): number {
    return this.deps.sound.level();
  }

  /** Voices that sound, die away or are to begin. */
  voices(): number {
    return this.deps.sound.voices;
  }

  /** The next tokens, which are taken back, and the logits of the first. Ends an answer. */
  peek(tokens: number): Promise<Requests["peek"]["result"]> {
    this.stage.end(this.stage.advance(), "cut");
    this.stage.remembered(); // what ended just now is certain then, as it is in a state that is saved
    return this.request("peek", { tokens });
  }

  // The piece

  open(source: Source, graph?: string): Promise<void> {
    return this.piece.inTurn(async () => {
      this.stage.leave();
      this.opening = true;
      this.changed();
      try {
        this.client ??= this.newClient();
        const opened = await this.request("open", graph === undefined ? { source } : { source, graph });
        this.opened = opened;
        this.status = opened.status;
        this.piece.clear();
        this.stage.open(opened.stepMs, opened.pitchRange, opened.status.frame);
      } finally {
        this.opening = false;
        this.arrived();
      }
    });
  }

  begin(): Promise<void> {
    return this.piece.begin();
  }

  file(name: string, data: ArrayBuffer): Promise<void> {
    return this.piece.file(name, data);
  }

  answer(): Promise<void> {
    return this.piece.answer();
  }

  vary(name?: string): Promise<void> {
    return this.piece.vary(name);
  }

  undo(): Promise<void> {
    return this.piece.undo();
  }

  async stop(): Promise<void> {
    this.piece.stop();
  }

  // The player

  noteOn(pitch: number, velocity: number): void {
    this.act({ kind: "on", channel: 0, pitch, value: velocity });
  }

  noteOff(pitch: number): void {
    this.act({ kind: "off", channel: 0, pitch, value: 0 });
  }

  pedal(down: boolean): void {
    this.act({ kind: "pedal", channel: 0, pitch: 0, value: down ? 127 : 0 });
  }

  wake(): Promise<void> {
    return this.deps.sound.wake();
  }

  set(settings: Partial<Settings>): void {
    this.settings = { ...this.settings, ...settings };
    this.deps.sound.set(this.settings.volume, this.settings.sound === "built-in");
    if (settings.sampling && this.stage.phase !== "listening") this.piece.sample(settings.sampling);
    this.changed();
  }

  connectMidi(): Promise<void> {
    return this.deps.midi.connect();
  }

  chooseInput(id: string | null): void {
    this.stage.letGo();
    this.deps.midi.chooseInput(id);
  }

  chooseOutput(id: string | null): void {
    this.deps.midi.chooseOutput(id);
  }

  // What is kept

  midi(): Uint8Array {
    const { notes } = this.stage.roll;
    if (!notes.length) {
      throw new HostError("input", "There is no note yet: play something first.");
    }
    const now = Math.round(this.stage.now);
    const first = notes[0].start;
    const shifted = notes.map(({ start, end, pitch, velocity }) => ({
      start: start - first,
      end: (end ?? Math.max(now, start + 1)) - first,
      pitch,
      velocity,
    }));
    return writeMidi(shifted, this.stage.stepMs);
  }

  saved(): Promise<readonly SavedEntry[]> {
    return this.deps.states.list(this.opened?.identity ?? null);
  }

  save(name: string): Promise<void> {
    return this.piece.inTurn(async () => {
      const data = await this.state(name);
      await this.deps.states.put(name, this.opened?.identity ?? "", data);
    });
  }

  async load(key: string): Promise<void> {
    const { name, data } = await this.deps.states.get(key);
    await this.piece.load(name, data);
  }

  remove(key: string): Promise<void> {
    return this.deps.states.remove(key);
  }

  exportState(name: string): Promise<Uint8Array> {
    return this.piece.inTurn(async () => new Uint8Array(await this.state(name)));
  }

  importState(name: string, data: ArrayBuffer): Promise<void> {
    return this.piece.load(name, data);
  }

  private async state(name: string): Promise<ArrayBuffer> {
    const extra = extraOf(this.stage.remembered(), this.settings);
    return (await this.request("save", { name, extra })).data;
  }

  // What the piece needs of the session

  get alive(): boolean {
    return this.opened !== null;
  }

  request<N extends RequestName>(kind: N, args: Requests[N]["args"]): Promise<Requests[N]["result"]> {
    if (!this.client || (!this.opened && kind !== "open")) {
      return Promise.reject(new HostError("input", "There is no bundle yet: open one first."));
    }
    this.stage.flush();
    return this.client.request(kind, args);
  }

  notice(text: string): void {
    this.bell.notice(text);
  }

  arrived(): void {
    this.progress = null;
    if (this.opened) this.stage.stay();
    this.changed();
  }

  // How it is done

  private get phase(): Phase {
    if (this.opening || this.progress) return "opening"; // a bundle, or a file that is being heard
    return this.opened ? this.stage.phase : "empty";
  }

  /** input: null = this page's keys. at: in seconds of the page's clock. */
  private act(act: Act, input: MIDIInput | null = null, at = this.deps.time.now()): void {
    this.deps.sound.tick();
    this.stage.act(act, at);
    this.deps.midi.through(act, input);
  }

  private tick(): void {
    this.deps.sound.tick();
    const at = this.stage.advance();
    const { answerAfterS } = this.settings;
    const { phase, player } = this.stage;
    if (answerAfterS === null || !this.stage.asked || phase !== "listening" || player.held) return;
    if (at - player.lastKey < answerAfterS) return;
    this.stage.asked = false;
    this.answer().catch((error) => this.notice((error as Error).message));
  }

  /** Where it is refused, the worker has ended, and that is told. */
  private ask<N extends RequestName>(kind: N, args: Requests[N]["args"]): void {
    this.request(kind, args).catch(() => {});
  }

  private newClient(): Client {
    return new Client(this.deps.worker(), {
      planned: (message) => this.stage.planned(message),
      status: ({ status }) => {
        this.status = status;
        this.changed();
      },
      progress: (message) => this.progressed(message),
      ended: (error) => this.ended(error),
    });
  }

  private progressed({ what, done, of }: Extract<FromWorker, { kind: "progress" }>): void {
    this.progress = { what, share: of > 0 ? Math.min(1, done / of) : 0 };
    this.changed();
  }

  private ended(error: HostError): void {
    this.client = this.opened = this.status = this.progress = null;
    this.piece.clear();
    this.stage.close();
    this.notice(error.message);
    this.changed();
  }

  private keyboardLost(name: string): void {
    this.stage.letGo();
    this.notice(
      `The keyboard ${name} is gone: the notes it held have ended. It plays again when it is back.`,
    );
  }

  private changed(): void {
    const waits = this.stage?.asked && this.settings.answerAfterS !== null;
    this.deps.ticker.run(Boolean(this.stage?.moves || waits));
    this.bell.ring();
  }
}
