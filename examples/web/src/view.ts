/** What the page shows of a session, and what it can ask of it: the border between engine and page. */

import type { Sampling } from "./host/sampling";
import type { By, Horizon, Opened, Source } from "./protocol";
import type { Spread } from "./timings";

/** A note on the roll. `end` is null while it sounds. Frames of the piece. */
export interface RollNote {
  readonly start: number;
  readonly end: number | null;
  readonly pitch: number;
  readonly velocity: number;
  readonly by: By;
}

/** empty: no bundle yet; opening; listening; thinking: an answer was asked for, nothing of it sounds yet;
 * answering: the model plays. */
export type Phase = "empty" | "opening" | "listening" | "thinking" | "answering";

/** One way in which the last answer could go on. */
export interface Variation {
  /** A, B, C … */
  readonly name: string;
  readonly seed: number;
  readonly current: boolean;
}

export interface MidiPort {
  readonly id: string;
  readonly name: string;
  readonly chosen: boolean;
}

export interface View {
  readonly phase: Phase;
  readonly opened: Opened | null;
  /** What is being done, for a progress bar: 0 … 1. */
  readonly progress: { readonly what: string; readonly share: number } | null;
  /** The present, in frames, with a fraction: moves by itself while music plays. */
  readonly now: number;
  readonly notes: readonly RollNote[];
  /** What the model means to play next. */
  readonly coming: readonly RollNote[];
  readonly horizons: readonly Horizon[];
  /** Tokens heard and played. */
  readonly position: number;
  readonly variations: readonly Variation[];
  readonly canUndo: boolean;
  /** A token; null before the first, as are the other figures. */
  readonly stepMs: Spread | null;
  /** From the wish for an answer to its first sound. */
  readonly answerMs: Spread | null;
  /** How much later than meant the model's events were handed to the sound. */
  readonly latenessMs: Spread | null;
  /** How often, and for how many seconds in all, the music waited for inference. */
  readonly waits: { readonly count: number; readonly seconds: number };
  /** From a key to its sound, as the browser says: base and output latency; null before there is sound. */
  readonly soundMs: number | null;
  /** Whether the browser lets us sound: it wants a click or a key first. */
  readonly soundOn: boolean;
  readonly inputs: readonly MidiPort[];
  readonly outputs: readonly MidiPort[];
  /** Why there is no MIDI, in a sentence; null where there is, or where nobody asked yet. */
  readonly midiProblem: string | null;
  readonly settings: Settings;
  /** Pitches that sound now, by whom: for the keys on the screen. */
  readonly sounding: ReadonlyMap<number, By>;
}

export interface Settings {
  readonly sampling: Sampling;
  readonly seed: number;
  /** Answer by itself after a pause of so many seconds; null: only when asked. */
  readonly answerAfterS: number | null;
  /** 0 … 1, of the built-in sound. */
  readonly volume: number;
  /** "built-in", or "none" where MIDI out is enough. */
  readonly sound: "built-in" | "none";
}

export interface SavedEntry {
  readonly key: string;
  readonly name: string;
  /** Milliseconds since 1970. */
  readonly date: number;
  readonly bytes: number;
  /** Whether it belongs to the bundle that is open. */
  readonly fits: boolean;
}

/** A session: one bundle, one memory, one pair of ears. Methods that can fail reject with HostError, whose
 * message is a sentence for the page; nothing is lost then. */
export interface Session {
  /** As it is at this moment; cheap enough for every frame of the screen. */
  view(): View;
  /** Called whenever something changed other than time passing. Returns the way to end it. */
  onChange(listener: () => void): () => void;
  /** Called with sentences that concern nobody's request: a keyboard that is gone, a late answer. */
  onNotice(listener: (text: string) => void): () => void;

  open(source: Source, graph?: string): Promise<void>;
  /** A new piece that begins with a file. */
  file(name: string, data: ArrayBuffer): Promise<void>;
  /** A new, empty piece. */
  begin(): Promise<void>;

  /** A key of the screen or of the computer: velocity 1-127. Must be called in the handler of an event. */
  noteOn(pitch: number, velocity: number): void;
  noteOff(pitch: number): void;
  pedal(down: boolean): void;

  /** The model goes on. While it plays: nothing. */
  answer(): Promise<void>;
  /** The last answer again from its beginning, another way; with a name: that way again. */
  vary(name?: string): Promise<void>;
  /** Silence, at once. What was heard is remembered. */
  stop(): Promise<void>;
  /** Takes back the last answer, phrase or file. */
  undo(): Promise<void>;

  /** Lets the browser sound: call it in the handler of a click or a key. */
  wake(): Promise<void>;
  set(settings: Partial<Settings>): void;

  /** Asks the browser for MIDI. Rejects with a sentence where it has none. */
  connectMidi(): Promise<void>;
  /** Listen to this input only (null: to all); play to this output, too (null: to none). */
  chooseInput(id: string | null): void;
  chooseOutput(id: string | null): void;

  /** The piece so far as a Standard MIDI File. */
  midi(): Uint8Array;

  /** States, kept in this browser. */
  saved(): Promise<readonly SavedEntry[]>;
  save(name: string): Promise<void>;
  load(key: string): Promise<void>;
  remove(key: string): Promise<void>;
  /** The same as a file, for another browser or for `dsmr play --load-state`. */
  exportState(name: string): Promise<Uint8Array>;
  importState(name: string, data: ArrayBuffer): Promise<void>;
}
