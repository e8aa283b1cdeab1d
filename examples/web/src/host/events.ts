/** Token ids from key events, by the manifest's event table alone. (dsmr_export/runtime/events.py does the same.) */

import { HostError } from "./errors";
import { type KeyEvent, type Note, toEvents } from "./performance";

export const EVENT_KINDS = ["on", "off", "velocity", "shift", "special"] as const;
export type EventKind = (typeof EVENT_KINDS)[number];

/** The manifest's `events`: what each id means. */
export interface EventsEntry {
  /** Milliseconds of a frame. */
  readonly step_ms: number;
  readonly tokens: readonly { readonly kind: EventKind; readonly value: number | string }[];
}

/** What each id means. `values`: a pitch (on, off), a MIDI velocity, a number of steps of `stepMs` (shift) or a name
 * (special). */
export class EventTable {
  readonly stepMs: number;
  readonly kinds: readonly EventKind[];
  readonly values: readonly (number | string)[];
  /** Pitch to the id of its note-on, and of its note-off. */
  readonly onIds: ReadonlyMap<number, number>;
  readonly offIds: ReadonlyMap<number, number>;
  /** Number of steps to the id of that shift. */
  readonly shiftIds: ReadonlyMap<number, number>;
  /** MIDI velocity to its id. */
  readonly velocities: ReadonlyMap<number, number>;
  /** Id of the nearest velocity for every MIDI velocity 0-127; ties go to the louder. */
  readonly velocityIds: readonly number[];
  /** Steps of the longest shift; longer silences are chained from it. */
  readonly longestShift: number;
  /** Lowest and highest pitch that has a token. */
  readonly pitchRange: readonly [number, number];

  private constructor({ step_ms, tokens }: EventsEntry) {
    this.stepMs = step_ms;
    this.kinds = tokens.map((token) => token.kind);
    this.values = tokens.map((token) => token.value);
    this.onIds = this.byValue("on");
    this.offIds = this.byValue("off");
    this.shiftIds = this.byValue("shift");
    this.velocities = this.byValue("velocity");
    const pitches = [...this.onIds.keys()];
    if (!pitches.length || pitches.length !== this.offIds.size || !pitches.every((p) => this.offIds.has(p))) {
      throw damaged("the pitches of on and off differ or are none");
    }
    if (!this.velocities.size || !this.shiftIds.has(1)) {
      throw damaged("there is no velocity or no shift of one step");
    }
    this.velocityIds = nearest(this.velocities);
    this.longestShift = Math.max(...this.shiftIds.keys());
    this.pitchRange = [Math.min(...pitches), Math.max(...pitches)];
  }

  /** From the manifest's `events`. Throws HostError "bundle" for a table that cannot say every performance. */
  static fromManifest(events: EventsEntry): EventTable {
    if (!Number.isInteger(events.step_ms) || events.step_ms < 1) {
      throw new HostError(
        "bundle",
        `events.step_ms is ${events.step_ms}, not a whole number of milliseconds: export the bundle again.`,
      );
    }
    if (!Array.isArray(events.tokens)) throw damaged("there is no list of tokens");
    for (const [id, token] of events.tokens.entries()) {
      const known = EVENT_KINDS.includes(token?.kind);
      if (!known || (token.kind !== "special" && !Number.isInteger(token.value)))
        throw damaged(`token ${id} has no meaning (${JSON.stringify(token)})`);
    }
    return new EventTable(events);
  }

  /** How many ids there are, V. */
  get length(): number {
    return this.kinds.length;
  }

  /** Id of `pad`, `bos` or `eos`; null if there is none. */
  specialId(name: string): number | null {
    const id = this.kinds.findIndex((kind, id) => kind === "special" && this.values[id] === name);
    return id < 0 ? null : id;
  }

  private byValue(kind: EventKind): Map<number, number> {
    const ids = [...this.kinds.keys()].filter((id) => this.kinds[id] === kind);
    return new Map(ids.map((id) => [this.values[id] as number, id]));
  }
}

function nearest(velocities: ReadonlyMap<number, number>): number[] {
  return Array.from({ length: 128 }, (_, velocity) => {
    const bins = [...velocities].sort(([a], [b]) => Math.abs(a - velocity) - Math.abs(b - velocity) || b - a);
    return bins[0][1];
  });
}

/**
 * Ids of key events as they happen. Feed it what a `Recorder` returns: events in canonical order.
 *
 * `frame` is the moment up to which time was said.
 */
export class Encoder {
  private readonly shifts: readonly (readonly [steps: number, id: number])[]; // longest first

  constructor(
    readonly table: EventTable,
    private said = 0,
  ) {
    this.shifts = [...table.shiftIds].sort(([a], [b]) => b - a);
  }

  get frame(): number {
    return this.said;
  }

  /** The ids of one event: the shifts up to it, then off, or on and its velocity. */
  push(event: KeyEvent): number[] {
    const { onIds, offIds, velocityIds } = this.table;
    const ids = this.wait(event.frame);
    if (event.kind === "off") ids.push(offIds.get(event.pitch) as number);
    else ids.push(onIds.get(event.pitch) as number, velocityIds[event.velocity]);
    return ids;
  }

  /** What silence up to `frame` makes certain: longest shifts only, so the chain is the same. */
  advance(frame: number): number[] {
    const [steps, id] = this.shifts[0];
    const count = Math.floor(Math.max(frame - this.said, 0) / steps);
    this.said += count * steps;
    return new Array<number>(count).fill(id);
  }

  /** The ids of the whole time up to `frame`: where somebody else goes on from that very moment. */
  wait(frame: number): number[] {
    const ids = this.advance(frame);
    const rest = frame - this.said;
    if (rest <= 0) return ids;
    const exact = this.table.shiftIds.get(rest);
    if (exact === undefined) this.pushPieces(rest, ids);
    else ids.push(exact);
    this.said = frame;
    return ids;
  }

  /** A gap that has no token of its own, said by the largest shifts that fit. */
  private pushPieces(gap: number, ids: number[]): void {
    let rest = gap;
    for (const [steps, id] of this.shifts) {
      for (; rest >= steps; rest -= steps) ids.push(id);
    }
  }
}

/** Ids of a canonical performance within the table's pitches, without BOS and EOS. */
export function encode(notes: readonly Note[], table: EventTable): number[] {
  const encoder = new Encoder(table);
  return toEvents(notes).flatMap((event) => encoder.push(event));
}

function damaged(what: string): HostError {
  return new HostError("bundle", `events: ${what}: export the bundle again.`);
}
