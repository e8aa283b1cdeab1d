/** From a bundle's files to a stream that was tried: which graph this browser runs. */

import { Bundle } from "./bundle";
import { GraphError, HostError } from "./errors";
import type { Files } from "./files";
import { checkGolden, type GoldenResult } from "./golden";
import type { Manifest } from "./manifest";
import { OnnxRuntime, ORT_VERSION } from "./onnxruntime";
import { Stream } from "./stream";

/** Where it is remembered that a graph passed: keys are one line each. */
export interface Memo {
  has(key: string): Promise<boolean>;
  add(key: string): Promise<void>;
}

export interface Tried {
  readonly stream: Stream;
  /** Why this graph, in a sentence. */
  readonly reason: string;
  /** null where it passed at an earlier load. */
  readonly golden: GoldenResult | null;
}

const NO_MEMO: Memo = { has: async () => false, add: async () => {} };

let loading: Promise<OnnxRuntime> | null = null;

/** The module is loaded once; a load that failed is tried again. */
function onnxRuntime(): Promise<OnnxRuntime> {
  loading ??= OnnxRuntime.load().catch((error) => {
    loading = null;
    throw error;
  });
  return loading;
}

/** Opens a bundle: its files are checked, none of its graphs is loaded. */
export function openBundle(files: Files): Promise<Bundle> {
  return Bundle.open(files);
}

/**
 * A stream on the first graph whose golden vectors pass here, or on `graph` if those pass.
 *
 * The portable graph, which is bigger and slower, is only taken if it is asked for or the bundle's default. Throws
 * GraphError, with what each graph did and which others there are, where none passes.
 */
export async function openStream(bundle: Bundle, graph?: string, memo: Memo = NO_MEMO): Promise<Tried> {
  const { manifest } = bundle;
  const names = graph === undefined ? candidates(manifest) : [graph];
  const failures: string[] = [];
  for (const name of names) {
    bundle.graph(name);
    try {
      const tried = await attempt(bundle, name, memo);
      const before = failures.length ? ` ${failures.join(" ")}` : "";
      return { ...tried, reason: tried.reason + before };
    } catch (error) {
      if (!(error instanceof GraphError)) throw error;
      failures.push(`${name}: ${error.message}`);
    }
  }
  throw new GraphError(
    `No graph runs here. ${failures.join(" ")} ${wayOut(manifest, names)}`,
    others(manifest, names),
  );
}

/** Graphs in the order to try them. What a CPU must have a page cannot know, so what asks for it comes last. */
export function candidates(manifest: Manifest): string[] {
  const { graphs, default_graph } = manifest;
  const names = manifest.preference ?? [
    default_graph,
    ...Object.keys(graphs).filter((name) => name !== default_graph),
  ];
  const fused = names.filter((name) => graphs[name].ops === "fused" || name === default_graph);
  const picky = (name: string) => Number(Boolean(graphs[name].requires?.length));
  return fused.sort((a, b) => picky(a) - picky(b));
}

async function attempt(bundle: Bundle, name: string, memo: Memo): Promise<Tried> {
  const { manifest } = bundle;
  const entry = bundle.graph(name);
  requireVersion(entry.min_onnxruntime);
  const runtime = await onnxRuntime();
  const session = runtime.session(await bundle.model(name), manifest.session?.options ?? {});
  let stream: Stream;
  try {
    stream = new Stream(bundle, name, session);
  } catch (error) {
    session.release();
    throw error;
  }
  try {
    const key = `golden ${bundle.identity} ${name} ${ORT_VERSION} ${navigator.userAgent}`;
    if (await memo.has(key))
      return { stream, golden: null, reason: `${name}: golden vectors passed before.` };
    const golden = checkGolden(await bundle.golden(), stream, entry.quantization === null);
    if (!golden.passed) throw new GraphError(`golden vectors do not pass (${figures(golden)}).`);
    await memo.add(key);
    stream.reset();
    return { stream, golden, reason: `${name}: golden vectors pass (${figures(golden)}).` };
  } catch (error) {
    stream.free();
    throw error;
  }
}

function requireVersion(needed: string): void {
  const number = (version: string) => {
    const [major, minor, patch] = version.split(/[.-]/).map((part) => Number.parseInt(part, 10) || 0);
    return (major * 1000 + minor) * 1000 + (patch ?? 0);
  };
  if (number(needed) > number(ORT_VERSION)) {
    throw new GraphError(`it needs onnxruntime ${needed}, this page has ${ORT_VERSION}.`);
  }
}

function figures(golden: GoldenResult): string {
  const { klMean, top1, maxAbsLogit, positions } = golden;
  return `${positions} positions, KL ${klMean.toExponential(1)}, top-1 ${top1.toFixed(4)}, logits ${maxAbsLogit.toExponential(1)} apart`;
}

function others(manifest: Manifest, tried: readonly string[]): string[] {
  const left = Object.keys(manifest.graphs).filter((name) => !tried.includes(name));
  return left.sort(
    (a, b) => Number(manifest.graphs[b].ops === "portable") - Number(manifest.graphs[a].ops === "portable"),
  );
}

function wayOut(manifest: Manifest, tried: readonly string[]): string {
  const left = others(manifest, tried);
  if (left.length) return `The bundle also has ${left.join(", ")}: use that.`;
  return tried.some((name) => manifest.graphs[name].ops === "portable")
    ? "Try another browser, or export the bundle again."
    : "Export it again with --ops fused,portable, and use the portable graph.";
}

/** For messages: a HostError's sentence, or what an unexpected error says. */
export function sentence(error: unknown): string {
  return error instanceof HostError ? error.message : `Something unexpected went wrong (${String(error)}).`;
}
