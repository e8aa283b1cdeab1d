/**
 * A file that holds a whole memory, the one that dsmr-export's own runtime writes and reads (docs/bundle.md): a line
 * `dsmr-state 1 SHA-256`, a line of JSON, and the bytes of the arrays.
 */

import { type Bundle, sha256 } from "./bundle";
import { HostError } from "./errors";
import { Paced } from "./grammar";
import type { Moment } from "./memory";
import { bytesOf } from "./onnxruntime";
import { Pcg64 } from "./pcg64";

const FORMAT = 1;
/** The first line has at most so many bytes: 16 for the magic word and the version, 64 of hash, spaces. */
const MAX_FIRST_LINE = 100;

export interface SavedState {
  readonly moment: Moment;
  readonly name: string;
  /** Plain JSON: what else somebody wants to find again. */
  readonly extra: Readonly<Record<string, unknown>>;
}

/** The file's bytes. */
export async function writeState(bundle: Bundle, state: SavedState): Promise<Uint8Array<ArrayBuffer>> {
  const { stream, mask, rng, player, frames } = state.moment;
  const logits = new Uint8Array(stream.logits.buffer, stream.logits.byteOffset, stream.logits.byteLength);
  const payload = concatenated([stream.state, logits]);
  const header = {
    bundle: stream.bundle,
    graph: stream.graph,
    name: state.name,
    position: stream.position,
    consumed: stream.consumed,
    count: stream.count,
    mask: mask.state(),
    rng,
    extra: { controls: {}, ...state.extra, player, frames },
    arrays: arraysOf(bundle, stream.graph),
    payload_sha256: await sha256(payload),
  };
  const encoder = new TextEncoder();
  const line = encoder.encode(`${toJson(header)}\n`);
  const first = encoder.encode(`dsmr-state ${FORMAT} ${await sha256(line)}\n`);
  return concatenated([first, line, payload]);
}

/** A state of `bundle`; `file` is what messages call it. Throws HostError "state". */
export async function readState(
  bundle: Bundle,
  data: Uint8Array<ArrayBuffer>,
  file: string,
): Promise<SavedState> {
  const { header, payload } = await parts(data, file);
  if (header.bundle !== bundle.identity) {
    throw refused(
      file,
      `is a state of bundle ${String(header.bundle).slice(0, 12)}, this is ${bundle.identity.slice(0, 12)}: open the bundle that it was saved with`,
    );
  }
  const graph = String(header.graph);
  if (!(graph in bundle.manifest.graphs)) throw damaged(file, `its graph ${graph} is not in the bundle`);
  const stateBytes = sizeOf(bundle, graph);
  const logitBytes = 4 * bundle.manifest.model.vocab_size;
  if (payload.length !== stateBytes + logitBytes)
    throw damaged(file, "it is cut short or longer than it should be");
  if ((await sha256(payload)) !== header.payload_sha256)
    throw damaged(file, "its content does not fit its checksum");
  try {
    const mask = new Paced(bundle.grammar());
    mask.resume(header.mask as never);
    const extra = (header.extra ?? {}) as Record<string, unknown>;
    const moment: Moment = {
      stream: {
        bundle: bundle.identity,
        graph,
        position: whole(header.position),
        consumed: whole(header.consumed),
        count: whole(header.count),
        state: payload.slice(0, stateBytes),
        logits: new Float32Array(payload.slice(stateBytes).buffer),
      },
      mask,
      rng: Pcg64.fromState(header.rng as never).state(),
      player: wholes(extra.player),
      frames: wholes(extra.frames),
    };
    return { moment, name: String(header.name ?? ""), extra };
  } catch (error) {
    throw damaged(file, (error as Error).message);
  }
}

type Header = Record<string, unknown>;

/** The header, whose checksum is right, and the rest. */
async function parts(
  data: Uint8Array<ArrayBuffer>,
  file: string,
): Promise<{ header: Header; payload: Uint8Array<ArrayBuffer> }> {
  if (!data.length) throw refused(file, "is empty (0 bytes); save it again, or take another copy of it");
  const decoder = new TextDecoder();
  const first = decoder.decode(data.subarray(0, MAX_FIRST_LINE));
  if (!first.startsWith("dsmr-state ")) {
    throw refused(file, "is not a saved state; give a file that this page or dsmr play --save-state wrote");
  }
  const [, version, hash] = /^dsmr-state ([1-9][0-9]{0,8}) (.*)\n/.exec(first) ?? [];
  if (Number(version) > FORMAT) {
    throw refused(file, `is of format ${version}, this page reads ${FORMAT}: get a newer page`);
  }
  const start = data.indexOf(10) + 1;
  const end = data.indexOf(10, start) + 1;
  const line = data.slice(start, end);
  if (!hash || !end || (await sha256(line)) !== hash)
    throw damaged(file, "its header does not fit its checksum");
  return { header: fromJson(decoder.decode(line)) as Header, payload: data.slice(end) };
}

function arraysOf(bundle: Bundle, graph: string): [string, string, readonly number[]][] {
  const tensors = bundle
    .graph(graph)
    .state.map(({ input, dtype, shape }): [string, string, readonly number[]] => [input, dtype, shape]);
  return [...tensors, ["logits", "float32", [bundle.manifest.model.vocab_size]]];
}

function sizeOf(bundle: Bundle, graph: string): number {
  return bundle.graph(graph).state.reduce((sum, { dtype, shape }) => sum + bytesOf(dtype, shape), 0);
}

function concatenated(parts: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let start = 0;
  for (const part of parts) {
    whole.set(part, start);
    start += part.length;
  }
  return whole;
}

// The random generator's numbers have 128 bits, and JSON's readers and writers here are exact only up to 53.

const STRING_OR_NUMBER = /"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g;
const LONG_WHOLE_NUMBER = /^-?\d{16,}$/;
const MARK = "\u0000big:";

function fromJson(text: string): unknown {
  const quoted = text.replace(STRING_OR_NUMBER, (part) =>
    LONG_WHOLE_NUMBER.test(part) ? `"\\u0000big:${part}"` : part,
  );
  return JSON.parse(quoted, (_, value) =>
    typeof value === "string" && value.startsWith(MARK) ? BigInt(value.slice(MARK.length)) : value,
  );
}

function toJson(value: unknown): string {
  const text = JSON.stringify(value, (_, part) => (typeof part === "bigint" ? MARK + part : part));
  return text.replaceAll(/"\\u0000big:(-?\d+)"/g, "$1");
}

function whole(value: unknown): number {
  if (typeof value !== "number" || !Number.isSafeInteger(value) || value < 0)
    throw new Error(`${value} is no count`);
  return value;
}

function wholes(value: unknown): number[] {
  return Array.isArray(value) ? value.map(whole) : [];
}

function refused(file: string, what: string): HostError {
  return new HostError("state", `${file} ${what}.`);
}

function damaged(file: string, what: string): HostError {
  return refused(file, `is damaged (${what}); save it again, or take another copy of it`);
}
