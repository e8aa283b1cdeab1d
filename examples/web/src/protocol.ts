/** What the page and the worker that runs the model say to each other. All times are in frames of the piece. */

import type { HostErrorKind } from "./host/errors";
import type { KeyEvent, Note } from "./host/performance";
import type { Sampling } from "./host/sampling";
import type { By } from "./host/tracks";
import type { Spread } from "./timings";

export { type By, MODEL, PLAYER } from "./host/tracks";

/** Where a bundle comes from: the address of its folder or of a zip file, a dropped zip, or a dropped folder. */
export type Source =
  | { readonly kind: "url"; readonly url: string }
  | { readonly kind: "zip"; readonly name: string; readonly data: Blob }
  | {
      readonly kind: "folder";
      readonly name: string;
      /** Path inside the folder, with slashes, and content. */
      readonly files: readonly (readonly [string, Blob])[];
    };

/** Something that sounded, as it happened. `value`: velocity of an on, position 0-127 of a pedal, else 0. */
export interface Sounded {
  readonly frame: number;
  readonly kind: "on" | "off" | "pedal" | "all_off";
  readonly pitch: number;
  readonly value: number;
  readonly channel: number;
  readonly by: By;
}

/** A layer, or several with the same horizon, and since when their memory reaches back. */
export interface Horizon {
  readonly layers: readonly number[];
  /** Tokens before the current one. */
  readonly tokens: number;
  /** Frame of the oldest token that is remembered. */
  readonly from: number;
}

/** How the model fares. */
export interface WorkerStatus {
  /** Tokens committed since the beginning, BOS included. */
  readonly position: number;
  /** The present of the piece: the last frame that anything was said about. */
  readonly frame: number;
  readonly horizons: readonly Horizon[];
  /** Milliseconds per token: median and 99th percentile of the latest steps; null before the first. */
  readonly stepMs: Spread | null;
  /** How many times the state can be taken back. */
  readonly marks: number;
}

/** What `open` found. */
export interface Opened {
  readonly name: string;
  /** SHA-256 of manifest.json, hex. */
  readonly identity: string;
  readonly graph: string;
  /** Why this graph, in a sentence, with the golden figures. */
  readonly reason: string;
  readonly stepMs: number;
  /** Lowest and highest pitch that the model knows. */
  readonly pitchRange: readonly [number, number];
  readonly horizons: readonly number[];
  readonly budgetTokens: number;
  readonly stateBytes: number;
  readonly modelBytes: number;
  readonly licence: string;
  readonly trainedOn: string;
  readonly runtime: { readonly version: string; readonly threads: number; readonly simd: boolean };
  readonly status: WorkerStatus;
}

/** Requests, each answered by `done` (with the type beside it) or `failed`. */
export interface Requests {
  /** Opens a bundle; `graph`: this one and no other. The memory begins anew. Slow: `progress` is told. */
  open: { args: { source: Source; graph?: string }; result: Opened };
  /** A new piece: forgets everything (but not the marks). */
  begin: { args: Record<never, never>; result: { frame: number } };
  /** A new piece that begins with a MIDI file, which is heard. Nothing is changed where it is not a good one. */
  file: {
    args: { name: string; data: ArrayBuffer };
    result: { frame: number; notes: readonly Note[]; leftOut: number };
  };
  /** Remembers this moment, so that `undo` comes back to it. */
  mark: { args: Record<never, never>; result: { marks: number } };
  /** Back to the latest mark, which is forgotten unless `keep`. The present is then `frame`. */
  undo: { args: { keep: boolean }; result: { frame: number; marks: number } };
  /** The model goes on from `frame` (or from the present, where that is later): the player's notes end, and
   * events come as `planned` with this `take`, from `frame` of the result on. seed: a new random generator; else
   * it goes on with the one it has. */
  answer: { args: { frame: number; take: number; seed?: number }; result: { frame: number } };
  /** No more planning. Send what was cut off as `sounded` before. */
  stop: { args: Record<never, never>; result: { frame: number } };
  /** Every note of the player's ends at `frame`: a keyboard is gone. */
  release: { args: { frame: number }; result: { frame: number } };
  /** From the next token on. */
  sampling: { args: { sampling: Sampling; pace: number | null }; result: Record<never, never> };
  /** Everything remembered, as a file that `dsmr play --load-state` reads, too. extra: JSON that comes back with it. */
  save: { args: { name: string; extra: unknown }; result: { data: ArrayBuffer } };
  /** Goes to a saved state. Nothing is changed where it is of another bundle, or damaged. */
  load: { args: { name: string; data: ArrayBuffer }; result: { frame: number; extra: unknown } };
  /** For tests: greedy or not, the next tokens, which are then taken back. */
  peek: { args: { tokens: number }; result: { ids: readonly number[]; logits: Float32Array } };
}

export type RequestName = keyof Requests;

export type ToWorker =
  | { [N in RequestName]: { kind: N; id: number } & Requests[N]["args"] }[RequestName]
  /** What sounded since the last message, in order of time. No answer. */
  | { readonly kind: "sounded"; readonly events: readonly Sounded[] }
  /** Nothing can sound before `certain` any more; a plan that is beyond `until` is long enough. No answer. */
  | { readonly kind: "time"; readonly certain: number; readonly until: number };

export type FromWorker =
  | { readonly kind: "done"; readonly id: number; readonly result: unknown }
  | {
      readonly kind: "failed";
      readonly id: number;
      readonly error: HostErrorKind | null;
      readonly message: string;
      /** Of a graph that cannot run here: which others of the bundle may. */
      readonly graphs?: readonly string[];
    }
  /** Events that the model means to play, in order, of an answer's `take`; the plan has reached `reached`. */
  | {
      readonly kind: "planned";
      readonly take: number;
      readonly events: readonly KeyEvent[];
      readonly reached: number;
      /** What was planned before no longer follows from what sounded: forget what is queued, these come instead. */
      readonly anew: boolean;
    }
  | { readonly kind: "status"; readonly status: WorkerStatus }
  | { readonly kind: "progress"; readonly what: string; readonly done: number; readonly of: number };
