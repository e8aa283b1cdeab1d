/** A stream: one endless sequence of tokens through one graph, with everything the model remembers of it. Any cut
 * of the tokens into segments gives the same logits. */

import type { Bundle } from "./bundle";
import { HostError } from "./errors";
import type { OrtSession } from "./onnxruntime";
import { type Runner, runnerFor } from "./runner";

/** Everything that a stream remembers, copied. `state`: every tensor's bytes in the manifest's order. */
export interface Snapshot {
  readonly bundle: string;
  readonly graph: string;
  readonly position: number;
  readonly consumed: number;
  readonly count: number;
  readonly state: Uint8Array<ArrayBuffer>;
  readonly logits: Float32Array<ArrayBuffer>;
}

export class Stream {
  readonly vocabSize: number;
  /** Logits [V] after the last token (zeros before the first): overwritten by the next. */
  readonly logits: Float32Array;
  /** Absolute position of the next token; `consumed`: tokens since reset. */
  position = 0;
  consumed = 0;
  private readonly runner: Runner;

  constructor(
    readonly bundle: Bundle,
    readonly graph: string,
    private readonly session: OrtSession,
  ) {
    const { model } = bundle.manifest;
    this.vocabSize = model.vocab_size;
    this.logits = new Float32Array(model.vocab_size);
    this.runner = runnerFor(session, bundle.graph(graph), model);
  }

  get stateBytes(): number {
    return this.runner.state.length;
  }

  /** Forgets everything; the next token is at `position`. */
  reset(position = 0): void {
    this.runner.reset();
    this.logits.fill(0);
    this.position = position;
    this.consumed = 0;
  }

  /** Feeds ids [S], any S >= 1; their logits [S * V], a copy. Throws HostError "input", with nothing fed, for an
   * id outside the vocabulary. */
  feed(ids: readonly number[]): Float32Array<ArrayBuffer> {
    for (const id of ids) this.check(id);
    const { maxSegment } = this.runner;
    const logits = new Float32Array(ids.length * this.vocabSize);
    for (let start = 0; start < ids.length; start += maxSegment) {
      const part = ids.slice(start, start + maxSegment);
      logits.set(this.runner.run(part, this.position), start * this.vocabSize);
      this.advance(part.length);
    }
    if (ids.length) this.logits.set(logits.subarray(-this.vocabSize));
    return logits;
  }

  /** Feeds one token; the logits are then in `logits`. */
  step(token: number): void {
    this.check(token);
    this.runner.run([token], this.position);
    this.advance(1);
    this.logits.set(this.runner.logits);
  }

  /** A copy of everything; into the memory of `old`, which is then no longer good, where one is given. */
  snapshot(old?: Snapshot): Snapshot {
    const { state, count } = this.runner;
    const into = old?.state.length === state.length ? old.state : new Uint8Array(state.length);
    into.set(state);
    const { bundle, graph, position, consumed } = this;
    return {
      bundle: bundle.identity,
      graph,
      position,
      consumed,
      count,
      state: into,
      logits: this.logits.slice(),
    };
  }

  /** Goes back (or across) to a snapshot of the same bundle and graph. Throws HostError "state", with nothing
   * changed, for another. */
  restore(from: Snapshot): void {
    if (from.bundle !== this.bundle.identity || from.graph !== this.graph) {
      throw new HostError(
        "state",
        `This state belongs to graph ${from.graph} of bundle ${from.bundle.slice(0, 12)}, what is open is ${this.graph} of ${this.bundle.identity.slice(0, 12)}: open what the state was made with.`,
      );
    }
    if (from.state.length !== this.stateBytes || from.logits.length !== this.vocabSize) {
      throw new HostError("state", "This state is not whole: its arrays have other sizes.");
    }
    this.runner.state.set(from.state);
    this.runner.count = from.count;
    this.logits.set(from.logits);
    this.position = from.position;
    this.consumed = from.consumed;
  }

  /** Gives its memory back, and the graph's. */
  free(): void {
    this.runner.free();
    this.session.release();
  }

  private advance(tokens: number): void {
    this.position += tokens;
    this.consumed += tokens;
  }

  private check(id: number): void {
    if (!Number.isInteger(id) || id < 0 || id >= this.vocabSize) {
      throw new HostError(
        "input",
        `Token id ${id} is not in the vocabulary: ids are 0 to ${this.vocabSize - 1}.`,
      );
    }
  }
}
