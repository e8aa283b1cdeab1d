/**
 * From logits to one token: temperature, then top-k, top-p and min-p on the probabilities, under a mask.
 *
 * Order and meaning follow Hugging Face transformers' logits processors: each filter sees what the one before it left,
 * renormalised. (dsmr_export/runtime/sampling.py does the same: same logits, settings and generator, same token.)
 */

import { HostError } from "./errors";
import type { EventTable } from "./events";

/** The length of a shift that a pace leaves as likely as it was: below are the shifts within a chord. */
const PACE_PIVOT_MS = 60;

/** temperature: 0 = the most likely token; topK: 0 = off; topP: 1 = off; minP: 0 = off. */
export interface Sampling {
  readonly temperature: number;
  readonly topK: number;
  readonly topP: number;
  readonly minP: number;
}

/** What `sample` draws with: at least 0, below 1. */
export interface Random {
  random(): number;
}

/** Throws HostError "input" for settings that make no sense. */
export function checkSampling({ temperature, topK, topP, minP }: Sampling): void {
  if (!(Number.isFinite(temperature) && temperature >= 0))
    throw refused(`temperature is ${temperature}: give 0 (most likely token) or more`);
  if (!(Number.isInteger(topK) && topK >= 0))
    throw refused(`top-k is ${topK}: give a whole number of tokens, or 0 for all`);
  if (!(topP > 0 && topP <= 1))
    throw refused(`top-p is ${topP}: give a probability above 0 and up to 1 (1 = all)`);
  if (!(minP >= 0 && minP <= 1))
    throw refused(`min-p is ${minP}: give a share of the largest probability, 0 (all) to 1`);
}

/**
 * What a pace adds to the logits, [V]: pace * ln(length / 60 ms) on each shift, so that long ones gain.
 *
 * A small model plays on more densely than what it heard: under-rated pauses make it busy, and having been busy keeps
 * it so. 0 changes nothing, above 0 is calmer, below 0 busier. Throws HostError "input" for a pace that is not finite.
 */
export function paceBias(table: EventTable, pace: number): Float32Array {
  if (!Number.isFinite(pace)) throw refused(`pace is ${pace}: give a number, 0 for the model's own`);
  const bias = new Float32Array(table.length);
  for (const [steps, id] of table.shiftIds)
    bias[id] = pace * Math.log((steps * table.stepMs) / PACE_PIVOT_MS);
  return bias;
}

/**
 * One token id from logits [V], under a mask [V] (1 = allowed, at least one of them) and with a bias [V] added before
 * all else; draws once, or never at temperature 0.
 *
 * Throws HostError "bundle" for logits that are no numbers.
 */
export function sample(
  logits: Float32Array,
  sampling: Sampling,
  rng: Random,
  allowed?: Uint8Array,
  bias?: Float32Array,
): number {
  const count = scratch.gather(logits, allowed, bias);
  const ids = scratch.ids;
  const weights = scratch.weights.subarray(0, count);
  const best = mostLikely(weights);
  if (sampling.temperature === 0) return ids[best];
  toProbabilities(weights, weights[best], sampling);
  let total = 0;
  for (let i = 0; i < count; i++) total += weights[i];
  if (!(total > 0)) throw noNumbers();
  // Strictly above the draw: what has probability zero is never chosen, not even by a draw of exactly 0.
  const draw = rng.random() * total;
  let mass = 0;
  for (let i = 0; i < count; i++) {
    mass += weights[i];
    if (mass > draw) return ids[i];
  }
  return ids[best]; // not reached: the draw is below the total
}

/** The tokens that are allowed and their weights: memory that every call uses again. */
class Scratch {
  ids = new Int32Array(0);
  weights = new Float64Array(0);
  sorted = new Float64Array(0);

  /** Takes the allowed ids, ascending, and their logits, summed in float32; returns how many. */
  gather(logits: Float32Array, allowed?: Uint8Array, bias?: Float32Array): number {
    if (logits.length > this.ids.length) {
      this.ids = new Int32Array(logits.length);
      this.weights = new Float64Array(logits.length);
      this.sorted = new Float64Array(logits.length);
    }
    let count = 0;
    for (let id = 0; id < logits.length; id++) {
      if (allowed && !allowed[id]) continue;
      this.ids[count] = id;
      this.weights[count++] = bias ? Math.fround(logits[id] + bias[id]) : logits[id];
    }
    return count;
  }

  /** The weights in ascending order: a copy, good until the next call. */
  ascending(weights: Float64Array): Float64Array {
    const sorted = this.sorted.subarray(0, weights.length);
    sorted.set(weights);
    return sorted.sort();
  }
}

const scratch = new Scratch();

/** Place of the largest; of equal ones the first. */
function mostLikely(logits: Float64Array): number {
  let best = 0;
  for (let i = 0; i < logits.length; i++) {
    if (Number.isNaN(logits[i])) throw noNumbers();
    if (logits[i] > logits[best]) best = i;
  }
  return best;
}

/** Logits to probabilities, in place, before they are made to add up to 1: the largest of them is 1. */
function toProbabilities(p: Float64Array, largest: number, sampling: Sampling): void {
  const { temperature, topK, topP, minP } = sampling;
  for (let i = 0; i < p.length; i++) p[i] = Math.exp((p[i] - largest) / temperature);
  if (topK > 0 && topK < p.length) cut(p, scratch.ascending(p)[p.length - topK]); // ties are all kept
  if (topP < 1) keepNucleus(p, topP);
  if (minP > 0) cut(p, minP); // of the largest, which is 1 and never cut
}

/** Nothing below `edge` is left. */
function cut(p: Float64Array, edge: number): void {
  for (let i = 0; i < p.length; i++) if (p[i] < edge) p[i] = 0;
}

/** Keeps, in place, the smallest set of tokens whose mass reaches topP (Holtzman et al. 2020); of equal ones at its
 * edge those with the lower ids. */
function keepNucleus(p: Float64Array, topP: number): void {
  const sorted = scratch.ascending(p);
  let total = 0;
  for (let i = sorted.length - 1; i >= 0; i--) total += sorted[i];
  let place = sorted.length;
  for (let mass = 0; place > 0 && !(mass >= topP * total); ) mass += sorted[--place];
  const edge = sorted[place];
  // Of those at the edge, the set has so many.
  let room = 0;
  while (place + room < sorted.length && sorted[place + room] === edge) room++;
  for (let i = 0; i < p.length; i++) {
    if (p[i] < edge) p[i] = 0;
    else if (p[i] === edge && room-- <= 0) p[i] = 0;
  }
}

function noNumbers(): HostError {
  return new HostError(
    "bundle",
    "The logits are not numbers, so the graph's weights are damaged: export the bundle again.",
  );
}

function refused(what: string): HostError {
  return new HostError("input", `${what}.`);
}
