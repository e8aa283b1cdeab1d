/** numpy's .npz: a zip of .npy arrays (numpy.lib.format, versions 1 to 3; little-endian, C order). */

import { unzipSync } from "fflate";

export interface NpyArray {
  readonly shape: readonly number[];
  readonly data: Float32Array | BigInt64Array;
}

/** Every array by name. Throws Error for what is no such file. */
export function readNpz(bytes: Uint8Array): Map<string, NpyArray> {
  const arrays = new Map<string, NpyArray>();
  for (const [file, content] of Object.entries(unzipSync(bytes)))
    arrays.set(file.replace(/\.npy$/, ""), readNpy(content));
  return arrays;
}

function readNpy(bytes: Uint8Array): NpyArray {
  if (String.fromCharCode(...bytes.subarray(1, 6)) !== "NUMPY") throw new Error("is not a .npy array");
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const [length, start] = bytes[6] === 1 ? [view.getUint16(8, true), 10] : [view.getUint32(8, true), 12];
  const header = new TextDecoder().decode(bytes.subarray(start, start + length));
  const [, type] = /'descr': '([^']+)'/.exec(header) ?? [];
  const [, dims] = /'shape': \(([^)]*)\)/.exec(header) ?? [];
  if (dims === undefined || !header.includes("'fortran_order': False"))
    throw new Error("has an unknown header");
  const shape = dims
    .split(",")
    .filter((size) => size.trim())
    .map(Number);
  const data = bytes.slice(start + length).buffer; // a copy: typed arrays want their alignment
  if (type === "<f4") return { shape, data: new Float32Array(data) };
  if (type === "<i8") return { shape, data: new BigInt64Array(data) };
  throw new Error(`has elements of type ${type}`);
}
