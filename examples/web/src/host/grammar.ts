/**
 * Which ids may come next, by the manifest's `grammar` and `events`: a mask that is cheap enough for every step.
 * (dsmr_export/runtime/grammar.py does the same; docs/bundle.md explains the rules.)
 *
 * Every id sequence that obeys the rules decodes to a canonical performance. With `ordered` it is also the sequence
 * that the encoder makes of that performance, up to shifts at its end: so what was sampled is what would have been
 * heard.
 */

import { HostError } from "./errors";
import type { EventKind, EventTable } from "./events";
import { readBits, writeBits } from "./packed_bits";
import { type LastKind, Rulebook, type Rules } from "./rulebook";

export type { Rules };

/** Where a grammar is, as plain JSON: what a saved state keeps. */
export interface GrammarState {
  readonly last: string;
  /** Pitch of a note-on that waits for its velocity. */
  readonly pending: number | null;
  readonly frame: number;
  /** Pitch and frame of onset of each sounding note, by pitch. */
  readonly onsets: readonly (readonly [pitch: number, frame: number])[];
  /** The mask: hex of its bits, the first of each byte the highest. */
  readonly allowed: string;
}

export interface GrammarOptions {
  /** Whether EOS may come: who plays on for ever does without. */
  readonly allowEos?: boolean;
  /** Whether the rule `ordered`, if there is one, holds: who plays ahead of itself needs it. */
  readonly ordered?: boolean;
}

/**
 * The state of the rules after some ids.
 *
 * `advance` takes any id, also one that the rules forbid (a foreign prompt). Throws HostError "bundle" for rules that
 * are incomplete or could end with no id allowed.
 */
export class Grammar {
  /** [V], 1 = may come next, at least one of them. One buffer, which `advance` rewrites. */
  readonly allowed: Uint8Array;
  ordered: boolean;
  private book: Rulebook;
  private readonly sounding = new Map<number, number>(); // pitch to frame of its onset
  private readonly possible: Uint8Array; // what the sounding notes permit
  private passed = 0;
  private pending: number | null = null;
  private last: LastKind = "start";

  /** rules: of a manifest, or what another grammar made of them. */
  constructor(
    readonly table: EventTable,
    rules: Rules | Rulebook,
    { allowEos = false, ordered = false }: GrammarOptions = {},
  ) {
    this.book = rules instanceof Rulebook ? rules : new Rulebook(table, rules, allowEos);
    this.ordered = ordered && Boolean(this.book.rules.ordered);
    this.possible = new Uint8Array(table.length);
    this.allowed = new Uint8Array(table.length);
    this.reset();
  }

  /** The pitches that sound, each with the frame of its onset since BOS: a copy. */
  get onsets(): Map<number, number> {
    return new Map(this.sounding);
  }

  /** Frames that the shifts since BOS come to. */
  get frame(): number {
    return this.passed;
  }

  /** As before the first id. */
  reset(): void {
    this.silence();
    this.last = "start";
    this.pending = null;
    this.passed = 0;
    this.permit("start");
  }

  /** Takes note that `token` came. BOS and EOS begin anew; PAD and ids out of range change nothing. */
  advance(token: number): void {
    const kind = this.table.kinds[token];
    if (kind === undefined) return;
    if (kind === "special") {
      if (this.book.beginning.includes(token)) this.reset();
      return;
    }
    const value = this.book.values[token];
    const struck = this.pending;
    let onset = 0;
    this.pending = kind === "on" ? value : null;
    if (kind === "shift") this.passed += value;
    else if (kind === "off") {
      onset = this.sounding.get(value) ?? this.passed;
      this.set(value, false);
    } else if (kind === "velocity" && struck !== null) this.set(struck, true);
    this.last = kind;
    this.permit(kind);
    if (this.ordered) this.keepOrder(kind, value, onset, struck);
  }

  /** Another grammar at the same point; the tables are shared. */
  copy(): Grammar {
    const twin = new Grammar(this.table, this.book);
    twin.become(this);
    twin.ordered = this.ordered;
    return twin;
  }

  /** Goes to the point and the rules of another one of the same table; whether order matters stays one's own. */
  become(other: Grammar): void {
    this.book = other.book;
    this.last = other.last;
    this.pending = other.pending;
    this.passed = other.passed;
    this.possible.set(other.possible);
    this.allowed.set(other.allowed);
    this.sounding.clear();
    for (const [pitch, onset] of other.sounding) this.sounding.set(pitch, onset);
  }

  state(): GrammarState {
    return {
      last: this.last,
      pending: this.pending,
      frame: this.passed,
      onsets: [...this.sounding].sort(([a], [b]) => a - b),
      allowed: writeBits(this.allowed),
    };
  }

  /** Goes to where another one was. Throws HostError "state", with nothing changed, for what is no such state. */
  resume(state: GrammarState): void {
    const { onsets, allowed } = this.checked(state);
    this.silence();
    this.passed = state.frame;
    for (const [pitch, onset] of onsets) {
      this.set(pitch, true);
      this.sounding.set(pitch, onset);
    }
    this.last = state.last as LastKind;
    this.pending = state.pending;
    this.allowed.set(allowed);
  }

  private checked(state: GrammarState): { onsets: GrammarState["onsets"]; allowed: Uint8Array } {
    const allowed = readBits(state?.allowed, this.table.length);
    const { onsets, pending } = state ?? {};
    const whole =
      allowed !== null &&
      Array.isArray(onsets) &&
      onsets.every((pair) => Array.isArray(pair) && pair.length === 2 && pair.every(Number.isInteger)) &&
      Number.isInteger(state.frame);
    if (!whole) throw new HostError("state", "This state is not whole: its grammar is damaged.");
    const pitches = onsets.map(([pitch]) => pitch);
    if (pending !== null) pitches.push(pending);
    const ours =
      this.book.follow.has(state.last as LastKind) &&
      pitches.every((pitch) => this.table.onIds.has(pitch)) &&
      allowed.includes(1);
    if (!ours) throw new HostError("state", "This state is not whole: its grammar is not this bundle's.");
    return { onsets, allowed };
  }

  private permit(last: LastKind): void {
    const { allowed, possible } = this;
    const follow = this.book.follow.get(last) as Uint8Array;
    for (let id = 0; id < allowed.length; id++) allowed[id] = follow[id] & possible[id];
  }

  private keepOrder(kind: EventKind, value: number, onset: number, struck: number | null): void {
    const { allowed, table } = this;
    if (kind === "velocity" && struck !== null) {
      for (const pitch of this.book.pitches) {
        if (pitch > struck) break;
        allowed[table.onIds.get(pitch) as number] = 0;
      }
    } else if (kind === "off") {
      for (const [pitch, began] of this.sounding) {
        const earlier = began < onset || (began === onset && pitch < value);
        if (earlier) allowed[table.offIds.get(pitch) as number] = 0;
      }
    } else if (kind === "shift" && value < table.longestShift) {
      for (const id of table.shiftIds.values()) allowed[id] = 0;
    }
  }

  private set(pitch: number, sounds: boolean): void {
    const { table, sounding, possible } = this;
    const { rules, eos } = this.book;
    if (sounds === sounding.has(pitch)) return;
    if (sounds) sounding.set(pitch, this.passed);
    else sounding.delete(pitch);
    if (rules.on_needs_silent) possible[table.onIds.get(pitch) as number] = Number(!sounds);
    if (rules.off_needs_sounding) possible[table.offIds.get(pitch) as number] = Number(sounds);
    if (eos !== null && rules.eos_needs_silence) possible[eos] = Number(sounding.size === 0);
  }

  private silence(): void {
    this.sounding.clear();
    this.possible.set(this.book.inSilence);
  }
}

/**
 * So many tokens within one frame, then only a shift may follow: twice what music needs. The grammar alone would allow
 * three for each of 88 pitches, and a manifest with other rules any number.
 */
export const MAX_FRAME_TOKENS = 128;

/** Where it is, as plain JSON; `here`: tokens since the last shift. */
export interface PacedState extends GrammarState {
  readonly here?: number;
}

/** A grammar under which time must pass: after `MAX_FRAME_TOKENS` without a shift, one is due. */
export class Paced {
  private here = 0;
  private readonly isShift: Uint8Array;
  private readonly onlyShifts: Uint8Array;

  constructor(private readonly grammar: Grammar) {
    this.isShift = shiftsOf(grammar.table);
    this.onlyShifts = new Uint8Array(this.isShift.length);
  }

  /** [V], 1 = may come next, at least one of them; valid until the next `advance`. */
  get allowed(): Uint8Array {
    const { allowed } = this.grammar;
    if (this.here < MAX_FRAME_TOKENS) return allowed;
    let any = 0;
    for (let id = 0; id < allowed.length; id++) any |= this.onlyShifts[id] = allowed[id] & this.isShift[id];
    return any ? this.onlyShifts : allowed; // a note-on still waits for its velocity
  }

  /** The pitches that sound, each with the frame of its onset since BOS. */
  get onsets(): Map<number, number> {
    return this.grammar.onsets;
  }

  /** Frames that the shifts since BOS come to. */
  get frame(): number {
    return this.grammar.frame;
  }

  /** Takes note that `token` came. */
  advance(token: number): void {
    this.grammar.advance(token);
    this.here = this.isShift[token] ? 0 : this.here + 1;
  }

  /** As before the first id. */
  reset(): void {
    this.grammar.reset();
    this.here = 0;
  }

  /** Another one at the same point. */
  copy(): Paced {
    const twin = new Paced(this.grammar.copy());
    twin.here = this.here;
    return twin;
  }

  /** Goes to the point of another one, which is left as it is; whether order matters stays one's own. */
  become(other: Paced): void {
    this.grammar.become(other.grammar);
    this.here = other.here;
  }

  state(): PacedState {
    return { ...this.grammar.state(), here: this.here };
  }

  /** Goes to where another one was. Throws HostError "state", with nothing changed, for what is no such state. */
  resume(state: PacedState): void {
    this.grammar.resume(state);
    this.here = Number(state.here ?? 0);
  }
}

function shiftsOf(table: EventTable): Uint8Array {
  return Uint8Array.from(table.kinds, (kind) => Number(kind === "shift"));
}
