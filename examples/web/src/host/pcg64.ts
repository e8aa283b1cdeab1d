/**
 * numpy's default random generator, number for number: a seed here is the same seed as in `dsmr play --seed`.
 *
 * PCG XSL-RR 128/64: M. E. O'Neill, "PCG: A Family of Simple Fast Space-Efficient Statistically Good Algorithms for
 * Random Number Generation", Harvey Mudd College HMC-CS-2014-0905, 2014. Seeds are spread over its 256 bits by numpy's
 * SeedSequence (numpy/random/bit_generator.pyx), after M. E. O'Neill, "Developing a seed_seq Alternative", 2015.
 */

import { HostError } from "./errors";

const MULTIPLIER = (2549297995355413924n << 64n) | 4865540595714422341n;
const MASK_64 = (1n << 64n) - 1n;
const MASK_128 = (1n << 128n) - 1n;

/** numpy's `bit_generator.state`. */
export interface Pcg64State {
  readonly bit_generator: "PCG64";
  /** 128 bits each; whoever reads JSON may have found a small one to be a number. */
  readonly state: { readonly state: bigint | number; readonly inc: bigint | number };
  /** The half of a number that numpy's 32-bit draws leave; nothing here makes or uses one. */
  readonly has_uint32: number;
  readonly uinteger: number;
}

export class Pcg64 {
  private constructor(
    private value: bigint,
    private readonly increment: bigint,
    private readonly half: Pick<Pcg64State, "has_uint32" | "uinteger">,
  ) {}

  /** The generator of a seed. Throws HostError "input" for one that is below 0 or not whole. */
  static seeded(seed: number | bigint): Pcg64 {
    if ((typeof seed === "number" && !Number.isInteger(seed)) || seed < 0) {
      throw new HostError("input", `seed is ${seed}: give a whole number, 0 or more.`);
    }
    const [high, low, streamHigh, streamLow] = spread(BigInt(seed));
    const increment = ((((streamHigh << 64n) | streamLow) << 1n) | 1n) & MASK_128;
    const generator = new Pcg64(increment, increment, { has_uint32: 0, uinteger: 0 }); // 0, one step on
    generator.value = (generator.value + ((high << 64n) | low)) & MASK_128;
    generator.step();
    return generator;
  }

  /** Goes on where `state` was. Throws HostError "state" for what is no state of such a generator. */
  static fromState(json: Pcg64State): Pcg64 {
    const { state, inc } = json?.state ?? {};
    const { bit_generator, has_uint32, uinteger } = json ?? {};
    const counts = [has_uint32, uinteger].every((value) => Number.isInteger(value) && value >= 0);
    if (bit_generator !== "PCG64" || !is128(state) || !is128(inc) || !counts) {
      throw new HostError("state", "This state is not whole: its random generator is damaged.");
    }
    return new Pcg64(BigInt(state), BigInt(inc), { has_uint32, uinteger });
  }

  /** A number of 53 random bits: at least 0, below 1. */
  random(): number {
    this.step();
    const folded = (this.value >> 64n) ^ (this.value & MASK_64);
    const turn = this.value >> 122n;
    const bits = ((folded >> turn) | (folded << (64n - turn))) & MASK_64;
    return Number(bits >> 11n) * 2 ** -53;
  }

  state(): Pcg64State {
    return {
      bit_generator: "PCG64",
      state: { state: this.value, inc: this.increment },
      ...this.half,
    };
  }

  private step(): void {
    this.value = (this.value * MULTIPLIER + this.increment) & MASK_128;
  }
}

function is128(value: unknown): value is bigint | number {
  const whole = typeof value === "bigint" || Number.isSafeInteger(value);
  return whole && (value as bigint | number) >= 0 && BigInt(value as bigint | number) <= MASK_128;
}

// SeedSequence: arithmetic modulo 2^32.

const POOL = 4;

/** Four 64-bit numbers of a seed of any size. */
function spread(seed: bigint): bigint[] {
  const pool = mixed(wordsOf(seed));
  const hash = hasher(0x8b51f9dd, 0x58f38ded);
  const words = Array.from({ length: 2 * POOL }, (_, i) => hash(pool[i % POOL]));
  return [0, 2, 4, 6].map((low) => BigInt(words[low]) | (BigInt(words[low + 1]) << 32n));
}

function mixed(entropy: readonly number[]): number[] {
  const hash = hasher(0x43b0d7e5, 0x931e8875);
  const pool = Array.from({ length: POOL }, (_, i) => hash(entropy[i] ?? 0));
  for (let from = 0; from < POOL; from++) {
    for (let to = 0; to < POOL; to++) if (to !== from) pool[to] = mix(pool[to], hash(pool[from]));
  }
  for (const word of entropy.slice(POOL)) {
    for (let to = 0; to < POOL; to++) pool[to] = mix(pool[to], hash(word));
  }
  return pool;
}

/** A hash whose constant changes with every word. */
function hasher(start: number, multiplier: number): (word: number) => number {
  let constant = start;
  return (word) => {
    const salted = word ^ constant;
    constant = Math.imul(constant, multiplier);
    return folded(Math.imul(salted, constant));
  };
}

function mix(x: number, y: number): number {
  return folded(Math.imul(0xca01f9dd, x) - Math.imul(0x4973f715, y));
}

function folded(word: number): number {
  return (word ^ (word >>> 16)) >>> 0;
}

/** A whole number's 32-bit words, the lowest first; 0 has one. */
function wordsOf(number: bigint): number[] {
  const words = [];
  for (let rest = number; rest > 0n || !words.length; rest >>= 32n) words.push(Number(rest & 0xffffffffn));
  return words;
}
