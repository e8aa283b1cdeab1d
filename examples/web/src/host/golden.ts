/** Golden vectors: real tokens with the logits that every graph should give. */

import { HostError } from "./errors";
import type { Manifest } from "./manifest";
import { readNpz } from "./npz";
import type { Stream } from "./stream";

/** Float graphs: largest difference of any logit. Quantized graphs: mean KL in nats and least top-1 agreement,
 * because activations round differently from machine to machine. From docs/bundle.md. */
const MAX_ABS_LOGIT = 1e-3;
const KL_MEAN = 1e-3;
const TOP1 = 0.97;

export interface Golden {
  readonly ids: readonly number[];
  /** Lengths of the segments that they are fed in. */
  readonly segments: readonly number[];
  /** Which tokens' logits are stored. */
  readonly positions: readonly number[];
  /** By graph: one row of `vocab_size` for each position. */
  readonly logits: ReadonlyMap<string, Float32Array>;
}

export interface GoldenResult {
  readonly passed: boolean;
  readonly maxAbsLogit: number;
  readonly klMean: number;
  readonly top1: number;
  readonly positions: number;
}

/** Throws HostError "bundle" for a file that is damaged. */
export function readGolden(bytes: Uint8Array, file: string, manifest: Manifest): Golden {
  try {
    const arrays = readNpz(bytes);
    const whole = (name: string) => Array.from(arrays.get(name)?.data as BigInt64Array, Number);
    const [ids, segments, positions] = ["input_ids", "segments", "positions"].map(whole);
    const logits = new Map<string, Float32Array>();
    for (const graph of Object.keys(manifest.graphs)) {
      const found = arrays.get(`logits.${graph}`)?.data;
      if (!(found instanceof Float32Array) || found.length !== positions.length * manifest.model.vocab_size) {
        throw new Error(`has no logits of ${graph}`);
      }
      logits.set(graph, found);
    }
    if (!ids.length || segments.reduce((sum, size) => sum + size, 0) !== ids.length)
      throw new Error("is not whole");
    return { ids, segments, positions, logits };
  } catch (error) {
    throw new HostError(
      "bundle",
      `${file} cannot be read (${(error as Error).message}): export the bundle again.`,
    );
  }
}

/** Runs the tokens through a stream, which begins anew, and applies the pass rule. */
export function checkGolden(golden: Golden, stream: Stream, exact: boolean): GoldenResult {
  const expected = golden.logits.get(stream.graph);
  if (!expected)
    throw new HostError("bundle", `The golden vectors have no graph ${stream.graph}: export again.`);
  const size = stream.vocabSize;
  const rows = new Map(golden.positions.map((position, row) => [position, row]));
  let [maxAbsLogit, kl, same, start] = [0, 0, 0, 0];
  stream.reset();
  for (const length of golden.segments) {
    const found = stream.feed(golden.ids.slice(start, start + length));
    for (let i = 0; i < length; i++) {
      const row = rows.get(start + i);
      if (row === undefined) continue;
      const want = expected.subarray(row * size, (row + 1) * size);
      const got = found.subarray(i * size, (i + 1) * size);
      for (let k = 0; k < size; k++) maxAbsLogit = Math.max(maxAbsLogit, Math.abs(want[k] - got[k]));
      kl += klDivergence(want, got);
      same += argmax(want) === argmax(got) ? 1 : 0;
    }
    start += length;
  }
  const positions = golden.positions.length;
  const [klMean, top1] = [kl / positions, same / positions];
  // Written so that a NaN does not pass.
  const passed = exact
    ? maxAbsLogit <= MAX_ABS_LOGIT && klMean <= KL_MEAN
    : klMean <= KL_MEAN && top1 >= TOP1;
  return { passed, maxAbsLogit, klMean, top1, positions };
}

export function argmax(values: ArrayLike<number>): number {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i] > values[best]) best = i;
  return best;
}

/** KL(p || q) in nats of two rows of logits. */
function klDivergence(p: Float32Array, q: Float32Array): number {
  const [logP, logQ] = [logSumExp(p), logSumExp(q)];
  let sum = 0;
  for (let i = 0; i < p.length; i++) {
    const log = p[i] - logP;
    sum += Math.exp(log) * (log - (q[i] - logQ));
  }
  return sum;
}

function logSumExp(values: Float32Array): number {
  let largest = Number.NEGATIVE_INFINITY;
  for (const value of values) largest = Math.max(largest, value);
  let sum = 0;
  for (const value of values) sum += Math.exp(value - largest);
  return largest + Math.log(sum);
}
