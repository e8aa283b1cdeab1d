/** What went wrong, for a page that wants to offer a way out. */
export type HostErrorKind =
  | "bundle" // damaged, incomplete, or none
  | "newer" // of a format that this host does not know
  | "graph" // a graph that cannot run here
  | "wasm" // no WebAssembly, or none that is enough
  | "midi" // not a MIDI file, or one that cannot be used
  | "state" // not a saved state, or one of another bundle
  | "input"; // an argument that makes no sense

/** An error that a user can mend: one sentence that says what, where and what to do. */
export class HostError extends Error {
  override readonly name = "HostError";
  readonly kind: HostErrorKind;

  constructor(kind: HostErrorKind, message: string) {
    super(message);
    this.kind = kind;
  }
}

/** A graph that cannot run here; `graphs` of the same bundle may, the likeliest first. */
export class GraphError extends HostError {
  readonly graphs: readonly string[];

  constructor(message: string, graphs: readonly string[] = []) {
    super("graph", message);
    this.graphs = graphs;
  }
}
