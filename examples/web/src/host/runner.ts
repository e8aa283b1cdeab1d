/**
 * One graph with its recurrent state: memory taken once, any number of calls.
 *
 * The fused graph writes its state where it reads it (the same memory is past and present); the portable one has
 * two copies that take turns. Axes: S tokens of this segment, D head width, V vocabulary.
 */

import type { GraphEntry, ModelShape, StateTensor } from "./manifest";
import { bytesOf, Call, type ElementType, type OnnxRuntime, type OrtSession } from "./onnxruntime";

/** A place in the module's memory, and tensors on it. */
class Place {
  readonly pointer: number;
  private readonly handles: number[] = [];

  constructor(
    private readonly runtime: OnnxRuntime,
    private readonly type: ElementType,
    elements: number,
  ) {
    this.pointer = runtime.allocate(bytesOf(type, [elements]));
  }

  tensor(shape: readonly number[]): number {
    const handle = this.runtime.tensor(this.type, shape, this.pointer);
    this.handles.push(handle);
    return handle;
  }

  free(): void {
    for (const handle of this.handles) this.runtime.releaseTensor(handle);
    this.runtime.free(this.pointer);
  }
}

type Pairs = readonly (readonly [string, number])[];

/** All tensors of a state, one after the other in the manifest's order: a copy of it is one copy. */
class State {
  readonly bytes: Uint8Array<SharedArrayBuffer>;
  private readonly handles: readonly number[];

  constructor(
    private readonly runtime: OnnxRuntime,
    private readonly tensors: readonly StateTensor[],
  ) {
    const sizes = tensors.map((tensor) => bytesOf(tensor.dtype, tensor.shape));
    const size = sizes.reduce((sum, bytes) => sum + bytes, 0);
    let pointer = runtime.allocate(size);
    this.bytes = runtime.bytes(pointer, size);
    this.handles = tensors.map(({ dtype, shape }, i) => {
      const handle = runtime.tensor(dtype, shape, pointer);
      pointer += sizes[i];
      return handle;
    });
  }

  asPast(): Pairs {
    return this.tensors.map(({ input }, i) => [input, this.handles[i]]);
  }

  asPresent(): Pairs {
    return this.tensors.map(({ output }, i) => [output, this.handles[i]]);
  }

  free(): void {
    for (const handle of this.handles) this.runtime.releaseTensor(handle);
    this.runtime.free(this.bytes.byteOffset);
  }
}

/** What both graphs share. `count` is what the graph is told of the past (fused: tokens, wrapped; portable: valid
 * tokens, saturating); with the state's bytes it is the whole recurrent state. */
export abstract class Runner {
  count = 0;
  readonly maxSegment: number;
  /** Logits [V] of the last step, overwritten by the next. */
  readonly logits: Float32Array;
  protected readonly ids: Int32Array;
  protected readonly cos: Float32Array;
  protected readonly sin: Float32Array;
  protected readonly places: Place[] = [];
  protected readonly idsPlace: Place;
  protected readonly logitsPlace: Place;
  protected readonly cosPlace: Place;
  protected readonly sinPlace: Place;
  private readonly frequencies: Float64Array;
  private readonly calls = new Map<number, readonly Call[]>();

  constructor(
    protected readonly session: OrtSession,
    protected readonly entry: GraphEntry,
    protected readonly model: ModelShape,
    ropeRows: number,
  ) {
    const { runtime } = session;
    const [segment, half] = [entry.stream.max_segment, model.head_dim / 2];
    this.maxSegment = segment;
    this.idsPlace = this.place("int64", segment);
    this.logitsPlace = this.place("float32", segment * model.vocab_size);
    this.cosPlace = this.place("float32", ropeRows * half);
    this.sinPlace = this.place("float32", ropeRows * half);
    // An id is far below 2^32: its upper half stays 0.
    this.ids = runtime.int32(this.idsPlace.pointer, 2 * segment);
    this.logits = runtime.float32(this.logitsPlace.pointer, model.vocab_size);
    this.cos = runtime.float32(this.cosPlace.pointer, ropeRows * half);
    this.sin = runtime.float32(this.sinPlace.pointer, ropeRows * half);
    this.frequencies = Float64Array.from(
      { length: half },
      (_, j) => model.rope_base ** ((-2 * j) / model.head_dim),
    );
  }

  /** The bytes of the state, every tensor in the manifest's order: read and write them between calls. */
  abstract get state(): Uint8Array;

  /** Feeds ids [S], S <= maxSegment, at `position` on; logits [S * V], overwritten by the next call. */
  run(ids: ArrayLike<number>, position: number): Float32Array {
    const size = ids.length;
    for (let i = 0; i < size; i++) this.ids[2 * i] = ids[i];
    this.fillRope(position, size);
    this.prepare(size);
    this.session.run(this.callFor(size));
    this.finish(size);
    const { vocab_size } = this.model;
    return this.session.runtime.float32(this.logitsPlace.pointer, size * vocab_size);
  }

  reset(): void {
    this.count = 0;
    this.state.fill(0);
  }

  free(): void {
    for (const call of [...this.calls.values()].flat()) call.free();
    for (const place of this.places) place.free();
  }

  protected abstract prepare(size: number): void;
  protected abstract finish(size: number): void;
  /** The call for the next segment of this size: one of those that `makeCalls` made. */
  protected abstract get turn(): number;
  protected abstract makeCalls(size: number): readonly Call[];

  protected place(type: ElementType, elements: number): Place {
    const place = new Place(this.session.runtime, type, elements);
    this.places.push(place);
    return place;
  }

  /** Steps are kept ready, and segments of the sizes that came: a host uses few. */
  private callFor(size: number): Call {
    let calls = this.calls.get(size);
    if (!calls) {
      calls = this.makeCalls(size);
      this.calls.set(size, calls);
    }
    return calls[this.turn];
  }

  /** Rows of the rotary tables: angles of the absolute positions, computed in float64. */
  private fillRope(position: number, size: number): void {
    const { cos, sin, frequencies } = this;
    const half = frequencies.length;
    for (let row = 0; row < size; row++) {
      for (let j = 0; j < half; j++) {
        const angle = (position + row) * frequencies[j];
        cos[row * half + j] = Math.cos(angle);
        sin[row * half + j] = Math.sin(angle);
      }
    }
  }
}

class FusedRunner extends Runner {
  private readonly own: State;
  private readonly rows: Place;
  private readonly lengths: Place;
  private readonly total: Place;
  private readonly numbers: readonly [Int32Array, Int32Array];

  constructor(session: OrtSession, entry: GraphEntry, model: ModelShape) {
    super(session, entry, model, entry.stream.rope_rows);
    const { runtime } = session;
    this.own = new State(runtime, entry.state);
    this.rows = this.place("int64", this.maxSegment);
    const rows = runtime.int32(this.rows.pointer, 2 * this.maxSegment);
    for (let i = 0; i < this.maxSegment; i++) rows[2 * i] = i;
    this.lengths = this.place("int32", 1);
    this.total = this.place("int32", 1);
    this.numbers = [runtime.int32(this.lengths.pointer, 1), runtime.int32(this.total.pointer, 1)];
  }

  override get state(): Uint8Array {
    return this.own.bytes;
  }

  override free(): void {
    super.free();
    this.own.free();
  }

  protected override get turn(): number {
    return 0;
  }

  protected override makeCalls(size: number): readonly Call[] {
    const { model, entry } = this;
    const rope = [entry.stream.rope_rows, model.head_dim / 2];
    const inputs: Pairs = [
      ["input_ids", this.idsPlace.tensor([1, size])],
      ["position_ids", this.rows.tensor([1, size])],
      ["seqlens_k", this.lengths.tensor([1])],
      ["total_sequence_length", this.total.tensor([])],
      ["rope_cos", this.cosPlace.tensor(rope)],
      ["rope_sin", this.sinPlace.tensor(rope)],
      ...this.own.asPast(),
    ];
    const logits = this.logitsPlace.tensor([1, size, model.vocab_size]);
    return [new Call(this.session.runtime, inputs, [["logits", logits], ...this.own.asPresent()])];
  }

  /** The count is wrapped, so that a stream has no end (docs/bundle.md). */
  protected override prepare(size: number): void {
    const { wrap_at, period, capacity } = this.entry.stream;
    if (this.count >= wrap_at) this.count -= period * Math.floor((this.count - capacity) / period);
    this.numbers[0][0] = this.count + size - 1;
    this.numbers[1][0] = this.count + size;
  }

  protected override finish(size: number): void {
    this.count += size;
  }
}

class PortableRunner extends Runner {
  private readonly copies: readonly [State, State];
  private readonly pastLength: Place;
  private readonly pastLengthNumber: Int32Array;
  private readonly saturation: number;
  private current = 0;

  constructor(session: OrtSession, entry: GraphEntry, model: ModelShape) {
    super(session, entry, model, entry.stream.max_segment);
    const { runtime } = session;
    this.copies = [new State(runtime, entry.state), new State(runtime, entry.state)];
    this.pastLength = this.place("int64", 1);
    this.pastLengthNumber = runtime.int32(this.pastLength.pointer, 2);
    this.saturation = Math.max(...entry.state.map((tensor) => tensor.shape[2]));
  }

  override get state(): Uint8Array {
    return this.copies[this.current].bytes;
  }

  override free(): void {
    super.free();
    for (const copy of this.copies) copy.free();
  }

  protected override get turn(): number {
    return this.current;
  }

  protected override makeCalls(size: number): readonly Call[] {
    const { model } = this;
    const inputs: Pairs = [
      ["input_ids", this.idsPlace.tensor([1, size])],
      ["past_length", this.pastLength.tensor([])],
      ["rope_cos", this.cosPlace.tensor([size, model.head_dim / 2])],
      ["rope_sin", this.sinPlace.tensor([size, model.head_dim / 2])],
    ];
    const logits: Pairs = [["logits", this.logitsPlace.tensor([1, size, model.vocab_size])]];
    const from = (past: State, present: State) =>
      new Call(this.session.runtime, [...inputs, ...past.asPast()], [...logits, ...present.asPresent()]);
    const [first, second] = this.copies;
    return [from(first, second), from(second, first)];
  }

  protected override prepare(): void {
    this.pastLengthNumber[0] = this.count;
  }

  protected override finish(size: number): void {
    this.current = 1 - this.current;
    this.count = Math.min(this.count + size, this.saturation);
  }
}

export function runnerFor(session: OrtSession, entry: GraphEntry, model: ModelShape): Runner {
  return entry.ops === "fused"
    ? new FusedRunner(session, entry, model)
    : new PortableRunner(session, entry, model);
}
