/**
 * onnxruntime's WebAssembly module, driven directly: tensors are places in its memory, and an output may be the
 * very place of an input. Its JavaScript API copies every input in and every output out at each call, and
 * allocates both anew; with a recurrent state of megabytes that takes longer than the model does
 * (`npm run compare`).
 */

import createModule, { type OrtModule } from "onnxruntime-web/ort-wasm-simd-threaded.mjs";
import wasmUrl from "onnxruntime-web/ort-wasm-simd-threaded.wasm?url";
import { GraphError, HostError } from "./errors";

/** Version of the onnxruntime-web that the page was built with. */
export const ORT_VERSION: string = __ORT_VERSION__;

/** What manifest.json calls the element types, with onnxruntime's number and the bytes of one. */
const TYPES = {
  float32: { code: 1, bytes: 4 },
  int8: { code: 3, bytes: 1 },
  int32: { code: 6, bytes: 4 },
  int64: { code: 7, bytes: 8 },
} as const;
export type ElementType = keyof typeof TYPES;

const CPU = 1;
const ALL_OPTIMIZATIONS = 99;
const ERRORS_ONLY = 3;

export function bytesOf(type: ElementType, shape: readonly number[]): number {
  return shape.reduce((product, size) => product * size, 1) * TYPES[type].bytes;
}

export class OnnxRuntime {
  private constructor(private readonly module: OrtModule) {}

  /** One thread: every core a page takes is one that the sound does not have. Throws HostError "wasm". */
  static async load(url: string = wasmUrl): Promise<OnnxRuntime> {
    if (typeof WebAssembly !== "object") {
      throw new HostError(
        "wasm",
        "This browser has no WebAssembly: use a current Chrome, Edge, Firefox or Safari.",
      );
    }
    let module: OrtModule;
    try {
      const quiet = () => {};
      module = await createModule({ numThreads: 1, locateFile: () => url, print: quiet, printErr: quiet });
    } catch (error) {
      throw new HostError(
        "wasm",
        `WebAssembly does not start here (${reason(error)}): it needs SIMD and threads, which Chrome 91, Firefox 89 and Safari 16.4 have, and it must not be switched off.`,
      );
    }
    const runtime = new OnnxRuntime(module);
    if (module._OrtInit(1, ERRORS_ONLY)) throw new HostError("wasm", `onnxruntime: ${runtime.lastError()}`);
    return runtime;
  }

  /** A session on a model's bytes. Throws GraphError with onnxruntime's own words. */
  session(model: Uint8Array, entries: Readonly<Record<string, string>>): OrtSession {
    const { module } = this;
    const options = module._OrtCreateSessionOptions(ALL_OPTIMIZATIONS, 1, 1, 0, 0, 0, 0, ERRORS_ONLY, 0, 0);
    if (!options) throw new GraphError(this.lastError());
    const data = this.allocate(model.length);
    try {
      for (const [key, value] of Object.entries(entries)) this.addEntry(options, key, value);
      module.HEAPU8.set(model, data);
      const handle = module._OrtCreateSession(data, model.length, options);
      if (!handle) throw new GraphError(this.lastError());
      return new OrtSession(this, module, handle);
    } finally {
      module._free(data);
      module._OrtReleaseSessionOptions(options);
    }
  }

  /** Memory of the module, zeroed. Throws HostError "wasm" where there is no more. */
  allocate(bytes: number): number {
    const pointer = this.module._malloc(Math.max(bytes, 1));
    if (!pointer) {
      throw new HostError("wasm", `WebAssembly has no ${Math.ceil(bytes / 1e6)} MB left: close other pages.`);
    }
    this.module.HEAPU8.fill(0, pointer, pointer + bytes);
    return pointer;
  }

  free(pointer: number): void {
    this.module._free(pointer);
  }

  // Views stay valid when the memory grows, because it is shared memory, which is never detached.

  bytes(pointer: number, length: number): Uint8Array<SharedArrayBuffer> {
    return new Uint8Array(this.module.HEAPU8.buffer, pointer, length);
  }

  int32(pointer: number, length: number): Int32Array<SharedArrayBuffer> {
    return new Int32Array(this.module.HEAPU8.buffer, pointer, length);
  }

  float32(pointer: number, length: number): Float32Array<SharedArrayBuffer> {
    return new Float32Array(this.module.HEAPU8.buffer, pointer, length);
  }

  /** A tensor on memory that is there already; release it with `releaseTensor`. */
  tensor(type: ElementType, shape: readonly number[], pointer: number): number {
    const dims = this.allocate(4 * shape.length);
    this.int32(dims, shape.length).set(shape);
    const { code } = TYPES[type];
    const handle = this.module._OrtCreateTensor(code, pointer, bytesOf(type, shape), dims, shape.length, CPU);
    this.free(dims);
    if (!handle) throw new GraphError(this.lastError());
    return handle;
  }

  releaseTensor(handle: number): void {
    this.module._OrtReleaseTensor(handle);
  }

  /** A string in the module's memory; the caller frees it. */
  text(value: string): number {
    const size = this.module.lengthBytesUTF8(value) + 1;
    const pointer = this.allocate(size);
    this.module.stringToUTF8(value, pointer, size);
    return pointer;
  }

  /** onnxruntime's message about what failed last, in one line. */
  lastError(): string {
    const out = this.allocate(8);
    this.module._OrtGetLastError(out, out + 4);
    const message = this.module.UTF8ToString(this.int32(out + 4, 1)[0] >>> 0);
    this.free(out);
    return message.replace(/\s+/g, " ").trim().slice(0, 300);
  }

  private addEntry(options: number, key: string, value: string): void {
    const [name, text] = [this.text(key), this.text(value)];
    this.module._OrtAddSessionConfigEntry(options, name, text);
    this.free(name);
    this.free(text);
  }
}

/** A loaded graph. */
export class OrtSession {
  private readonly options: number;

  constructor(
    readonly runtime: OnnxRuntime,
    private readonly module: OrtModule,
    private readonly handle: number,
  ) {
    this.options = module._OrtCreateRunOptions(ERRORS_ONLY, 0, 0, 0);
  }

  /** Throws GraphError with onnxruntime's own words. */
  run(call: Call): void {
    const { inputs, outputs } = call;
    const status = this.module._OrtRun(
      this.handle,
      inputs.names,
      inputs.values,
      inputs.count,
      outputs.names,
      outputs.count,
      outputs.values,
      this.options,
    );
    if (status !== 0) throw new GraphError(this.runtime.lastError());
  }

  release(): void {
    this.module._OrtReleaseRunOptions(this.options);
    this.module._OrtReleaseSession(this.handle);
  }
}

/** Names and tensors of one call, written into the module's memory once: a call allocates nothing. */
export class Call {
  readonly inputs: Bound;
  readonly outputs: Bound;

  constructor(
    runtime: OnnxRuntime,
    inputs: readonly (readonly [string, number])[],
    outputs: readonly (readonly [string, number])[],
  ) {
    this.inputs = new Bound(runtime, inputs);
    this.outputs = new Bound(runtime, outputs);
  }

  free(): void {
    this.inputs.free();
    this.outputs.free();
  }
}

class Bound {
  readonly names: number;
  readonly values: number;
  readonly count: number;
  private readonly texts: readonly number[];

  constructor(
    private readonly runtime: OnnxRuntime,
    pairs: readonly (readonly [string, number])[],
  ) {
    this.count = pairs.length;
    this.texts = pairs.map(([name]) => runtime.text(name));
    this.names = runtime.allocate(4 * this.count);
    this.values = runtime.allocate(4 * this.count);
    runtime.int32(this.names, this.count).set(this.texts);
    runtime.int32(this.values, this.count).set(pairs.map(([, handle]) => handle));
  }

  free(): void {
    for (const pointer of [...this.texts, this.names, this.values]) this.runtime.free(pointer);
  }
}

function reason(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
