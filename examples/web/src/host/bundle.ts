/** A bundle, opened: every byte that is used was compared with SHA256SUMS before. */

import { HostError } from "./errors";
import { EventTable } from "./events";
import type { Files } from "./files";
import { type Golden, readGolden } from "./golden";
import { Grammar } from "./grammar";
import { type GraphEntry, type Manifest, parseManifest } from "./manifest";

/** What a host never reads: changed, it changes nothing. */
const UNUSED = /^(README\.md|report\/.*)$/;

export class Bundle {
  readonly table: EventTable;

  private constructor(
    private readonly files: Files,
    private readonly sums: ReadonlyMap<string, string>,
    readonly manifest: Manifest,
    /** SHA-256 of manifest.json, hex: what a saved state belongs to. */
    readonly identity: string,
  ) {
    this.table = EventTable.fromManifest(manifest.events);
  }

  /** Reads everything but the graphs, which `graph` reads. Throws HostError "bundle" or "newer". */
  static async open(files: Files): Promise<Bundle> {
    const sums = parseSums(new TextDecoder().decode(await files.read("SHA256SUMS")));
    const text = await verified(files, sums, "manifest.json");
    const manifest = parseManifest(new TextDecoder().decode(text));
    const graphs = new Set(Object.values(manifest.graphs).map((graph) => graph.file));
    for (const path of sums.keys()) {
      if (!graphs.has(path) && !UNUSED.test(path)) await verified(files, sums, path);
    }
    return new Bundle(files, sums, manifest, sums.get("manifest.json") as string);
  }

  get name(): string {
    return this.manifest.name ?? this.files.name;
  }

  graph(name: string): GraphEntry {
    const found = this.manifest.graphs[name];
    if (!found) {
      const names = Object.keys(this.manifest.graphs).join(", ");
      throw new HostError("input", `There is no graph ${name} in this bundle: choose ${names}.`);
    }
    return found;
  }

  /** The bytes of a graph's file. */
  async model(name: string): Promise<Uint8Array> {
    return verified(this.files, this.sums, this.graph(name).file);
  }

  async golden(): Promise<Golden> {
    const { file } = this.manifest.golden;
    return readGolden(await verified(this.files, this.sums, file), file, this.manifest);
  }

  grammar(ordered = false): Grammar {
    return new Grammar(this.table, this.manifest.grammar, { ordered });
  }
}

/** `HASH  PATH` lines. */
function parseSums(text: string): Map<string, string> {
  const lines = text.split("\n").filter((line) => line.trim());
  const pairs = lines.map((line) => /^([0-9a-f]{64}) [ *](.+)$/.exec(line));
  if (!lines.length || pairs.includes(null)) {
    throw new HostError("bundle", "SHA256SUMS is damaged: export the bundle again.");
  }
  return new Map(pairs.map((pair) => [pair?.[2] as string, pair?.[1] as string]));
}

async function verified(
  files: Files,
  sums: ReadonlyMap<string, string>,
  path: string,
): Promise<Uint8Array<ArrayBuffer>> {
  const expected = sums.get(path);
  if (!expected) throw new HostError("bundle", `SHA256SUMS has no ${path}: export the bundle again.`);
  const bytes = await files.read(path);
  if ((await sha256(bytes)) !== expected) {
    throw new HostError(
      "bundle",
      `${path} of ${files.name} is not what was exported (its SHA-256 differs): copy the bundle again.`,
    );
  }
  return bytes;
}

/** Hex. Throws HostError "bundle" where the page was not served safely enough for WebCrypto. */
export async function sha256(bytes: Uint8Array<ArrayBuffer>): Promise<string> {
  if (!globalThis.crypto?.subtle) {
    throw new HostError(
      "bundle",
      "This browser checks no hashes on a page that came over plain http: open it over https, or from localhost.",
    );
  }
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
