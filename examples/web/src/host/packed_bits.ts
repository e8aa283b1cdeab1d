/** Masks as hex of their bits, the first of each byte the highest: as numpy.packbits has it. */

const BITS = 8;

/** mask: 0 or 1 each. */
export function writeBits(mask: Uint8Array): string {
  const bytes = new Uint8Array(Math.ceil(mask.length / BITS));
  for (let i = 0; i < mask.length; i++) bytes[i >> 3] |= mask[i] << (7 - (i & 7));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** The mask of `length` entries; null for what is not the hex of one. */
export function readBits(hex: unknown, length: number): Uint8Array | null {
  const size = Math.ceil(length / BITS);
  if (typeof hex !== "string" || hex.length !== 2 * size || !/^[0-9a-f]*$/i.test(hex)) return null;
  const bytes = Array.from({ length: size }, (_, i) => Number.parseInt(hex.slice(2 * i, 2 * i + 2), 16));
  return Uint8Array.from({ length }, (_, i) => (bytes[i >> 3] >> (7 - (i & 7))) & 1);
}
