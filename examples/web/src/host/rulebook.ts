/** A manifest's rules and event table as the masks that a grammar works with. */

import { HostError } from "./errors";
import { EVENT_KINDS, type EventKind, type EventTable } from "./events";

/** What came last: a kind, or nothing yet. */
export type LastKind = EventKind | "start";

/** The manifest's `grammar`. */
export interface Rules {
  /** The kinds that may come first. `special` means EOS, where the caller allows it. */
  readonly start: readonly EventKind[];
  /** For each kind, the kinds that may come after it. */
  readonly may_follow: Readonly<Partial<Record<EventKind, readonly EventKind[]>>>;
  readonly off_needs_sounding?: boolean;
  readonly on_needs_silent?: boolean;
  readonly eos_needs_silence?: boolean;
  /** Within a frame offs come by (onset, pitch) and ons by ascending pitch, and a shift follows another one only if
   * that was the longest. */
  readonly ordered?: boolean;
}

/** What rules and table come to: one for all copies of a grammar. */
export class Rulebook {
  /** Value of each id, 0 for special ones. */
  readonly values: readonly number[];
  /** For each last kind the ids whose kind may follow, [V] each, 0 or 1. */
  readonly follow: ReadonlyMap<LastKind, Uint8Array>;
  /** The ids with which all begins anew. */
  readonly beginning: readonly (number | null)[];
  readonly eos: number | null;
  /** Pitches that have a token, ascending. */
  readonly pitches: readonly number[];
  /** What may come while nothing sounds, whatever came last: [V], 0 or 1. */
  readonly inSilence: Uint8Array;

  constructor(
    readonly table: EventTable,
    readonly rules: Rules,
    allowEos: boolean,
  ) {
    this.values = table.values.map((value) => (typeof value === "number" ? value : 0));
    this.eos = allowEos ? table.specialId("eos") : null;
    this.beginning = [table.specialId("bos"), table.specialId("eos")];
    this.follow = followMasks(table, rules, this.eos);
    this.pitches = [...table.onIds.keys()].sort((a, b) => a - b);
    this.inSilence = new Uint8Array(table.length).fill(1);
    if (rules.off_needs_sounding) for (const id of table.offIds.values()) this.inSilence[id] = 0;
  }
}

/** For each last kind (and the start) the ids whose kind may follow: [V] each, 0 or 1. */
function followMasks(table: EventTable, rules: Rules, eos: number | null): Map<LastKind, Uint8Array> {
  if (typeof rules.may_follow !== "object" || rules.may_follow === null) {
    throw new HostError("bundle", "grammar: the manifest has no may_follow: export the bundle again.");
  }
  const masks = new Map<LastKind, Uint8Array>();
  for (const last of ["start", "on", "off", "velocity", "shift"] as const) {
    const following = last === "start" ? rules.start : rules.may_follow[last];
    if (!Array.isArray(following) || !following.every((kind) => EVENT_KINDS.includes(kind))) {
      const found = JSON.stringify(following);
      throw new HostError(
        "bundle",
        `grammar: what may follow ${last} is ${found}, not a list of ${EVENT_KINDS.join(", ")}: export the bundle again.`,
      );
    }
    // Only these two are possible whatever sounds.
    if (!following.includes("velocity") && !following.includes("shift")) {
      throw new HostError(
        "bundle",
        `grammar: after ${last} there may be no token left: allow shift or velocity.`,
      );
    }
    const mask = Uint8Array.from(table.kinds, (kind) =>
      Number(kind !== "special" && following.includes(kind)),
    );
    if (eos !== null) mask[eos] = Number(following.includes("special"));
    masks.set(last, mask);
  }
  return masks;
}
