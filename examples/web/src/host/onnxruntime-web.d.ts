// onnxruntime-web's compiled module, which its own JavaScript drives, too. Pointers are byte offsets into the
// heap, 0 is null; functions that return a number return 0 for success unless they return a handle.
declare module "onnxruntime-web/ort-wasm-simd-threaded.mjs" {
  export interface OrtModule {
    readonly HEAPU8: Uint8Array<SharedArrayBuffer>;
    _malloc(bytes: number): number;
    _free(pointer: number): void;
    lengthBytesUTF8(text: string): number;
    stringToUTF8(text: string, pointer: number, bytes: number): void;
    UTF8ToString(pointer: number): string;
    _OrtInit(threads: number, logLevel: number): number;
    _OrtGetLastError(code: number, message: number): void;
    _OrtCreateSessionOptions(
      optimization: number,
      arena: number,
      memoryPattern: number,
      executionMode: number,
      profiling: number,
      profilePrefix: number,
      logId: number,
      logLevel: number,
      verbosity: number,
      optimizedModel: number,
    ): number;
    _OrtAddSessionConfigEntry(options: number, key: number, value: number): number;
    _OrtReleaseSessionOptions(options: number): number;
    _OrtCreateSession(model: number, bytes: number, options: number): number;
    _OrtReleaseSession(session: number): number;
    _OrtReleaseRunOptions(options: number): number;
    _OrtCreateTensor(
      type: number,
      data: number,
      bytes: number,
      dims: number,
      rank: number,
      location: number,
    ): number;
    _OrtReleaseTensor(tensor: number): number;
    _OrtCreateRunOptions(logLevel: number, verbosity: number, terminate: number, tag: number): number;
    _OrtRun(
      session: number,
      inputNames: number,
      inputs: number,
      inputCount: number,
      outputNames: number,
      outputCount: number,
      outputs: number,
      options: number,
    ): number | Promise<number>;
  }

  const createModule: (options: {
    numThreads: number;
    locateFile: (file: string) => string;
    print?: (text: string) => void;
    printErr?: (text: string) => void;
  }) => Promise<OrtModule>;
  export default createModule;
}
