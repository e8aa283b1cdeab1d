/** manifest.json, as docs/bundle.md describes it: what this host reads of it, checked. */

import { HostError } from "./errors";
import type { EventsEntry } from "./events";
import type { Rules } from "./grammar";
import type { ElementType } from "./onnxruntime";

export const FORMAT = "dsmr-bundle";
export const FORMAT_VERSION = 1;

export interface StateTensor {
  readonly layer: number;
  readonly kind: "key" | "value";
  readonly input: string;
  readonly output: string;
  readonly shape: readonly number[];
  readonly dtype: ElementType;
  readonly horizon: number;
}

export interface StreamRule {
  readonly slack: number;
  readonly period: number;
  readonly capacity: number;
  readonly wrap_at: number;
  readonly max_segment: number;
  readonly rope_rows: number;
}

export interface GraphEntry {
  readonly file: string;
  readonly sha256: string;
  readonly bytes: number;
  readonly ops: "fused" | "portable";
  readonly min_onnxruntime: string;
  readonly quantization: object | null;
  readonly state: readonly StateTensor[];
  readonly stream: StreamRule;
  readonly requires?: readonly string[];
}

export interface ModelShape {
  readonly layers: number;
  readonly heads: number;
  readonly kv_heads: number;
  readonly head_dim: number;
  readonly d_model: number;
  readonly d_ff: number;
  readonly vocab_size: number;
  readonly rope_base: number;
}

export interface Manifest {
  readonly format: string;
  readonly format_version: number;
  readonly name?: string;
  readonly model: ModelShape;
  readonly schedule: {
    readonly name: string;
    readonly horizons: readonly number[];
    readonly budget_tokens: number;
  };
  readonly events: EventsEntry;
  readonly grammar: Rules;
  readonly special: { readonly pad: number; readonly bos: number; readonly eos: number };
  readonly graphs: Readonly<Record<string, GraphEntry>>;
  readonly default_graph: string;
  readonly preference?: readonly string[];
  readonly session?: { readonly options?: Readonly<Record<string, string>> };
  readonly generation?: { readonly pace: number };
  readonly golden: { readonly file: string; readonly sha256: string };
  readonly provenance?: { readonly data?: string; readonly licence?: string };
}

const NEEDED = [
  "model",
  "schedule",
  "events",
  "grammar",
  "special",
  "graphs",
  "default_graph",
  "golden",
] as const;
const MODEL = ["layers", "heads", "kv_heads", "head_dim", "vocab_size", "rope_base"] as const;
const STREAM = ["period", "capacity", "wrap_at", "max_segment", "rope_rows"] as const;

/** Reads the text of a manifest. Throws HostError "bundle" or "newer". */
export function parseManifest(text: string): Manifest {
  let found: Manifest;
  try {
    found = JSON.parse(text);
  } catch {
    throw damaged("is not JSON");
  }
  if (found?.format !== FORMAT)
    throw damaged(`is not of a bundle (its format is ${JSON.stringify(found?.format)})`);
  if (found.format_version > FORMAT_VERSION) {
    throw new HostError(
      "newer",
      `This bundle is of format ${found.format_version}, this page reads ${FORMAT_VERSION}: get a newer page from a newer dsmr-export.`,
    );
  }
  for (const key of NEEDED) if (!(key in found)) throw damaged(`has no ${key}`);
  requireNumbers(found.model, MODEL, "model");
  for (const [name, graph] of Object.entries(found.graphs)) {
    if (graph.ops !== "fused" && graph.ops !== "portable")
      throw damaged(`has a graph ${name} of unknown ops`);
    if (!Array.isArray(graph.state) || !graph.state.length)
      throw damaged(`has no state of the graph ${name}`);
    requireNumbers(graph.stream, STREAM, `graphs.${name}.stream`);
  }
  if (!(found.default_graph in found.graphs)) throw damaged(`has no graph ${found.default_graph}`);
  return found;
}

function requireNumbers<T extends object>(part: T, keys: readonly (keyof T & string)[], where: string): void {
  for (const key of keys) {
    if (typeof part?.[key] !== "number") throw damaged(`has no number ${where}.${key}`);
  }
}

function damaged(what: string): HostError {
  return new HostError("bundle", `manifest.json ${what}: export the bundle again.`);
}
