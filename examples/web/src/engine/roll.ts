/** The notes of the piece, as the memory has them: what is shown is what is remembered. */

import { PEDAL_DOWN } from "../host/controllers";
import { type By, PLAYER, type Sounded } from "../protocol";
import type { RollNote } from "../view";

/** A note under way. `held`: its key is down. */
interface Open {
  readonly place: number;
  readonly channel: number;
  readonly by: By;
  held: boolean;
}

/**
 * Hears what sounded by the rules of the recorder that the memory hears with (host/performance.ts): one note of a
 * pitch at a time, a pedal holds the player's notes of its channel, a note lasts a frame at least, and strikes of
 * one pitch within a frame are one note. `pitchRange`: what the model has no word for is not remembered.
 */
export class Roll {
  pitchRange: readonly [number, number] = [0, 127];
  private all: RollNote[] = [];
  private open = new Map<number, Open>();
  private pedals = new Set<number>();
  private shown: readonly RollNote[] | null = null;
  private lit: ReadonlyMap<number, By> | null = null;

  /** In order of their beginning. The same array until something changes. */
  get notes(): readonly RollNote[] {
    this.shown ??= [...this.all];
    return this.shown;
  }

  /** The pitches that sound, by whom. The same map until something changes. */
  get sounding(): ReadonlyMap<number, By> {
    this.lit ??= new Map([...this.open].map(([pitch, note]) => [pitch, note.by]));
    return this.lit;
  }

  knows(pitch: number): boolean {
    return pitch >= this.pitchRange[0] && pitch <= this.pitchRange[1];
  }

  /** Other notes from now on; those without an end end at `frame`. */
  become(notes: readonly RollNote[], frame: number): void {
    this.all = notes.map((note) =>
      note.end === null ? { ...note, end: Math.max(frame, note.start + 1) } : note,
    );
    this.open.clear();
    this.pedals.clear();
    this.changed();
  }

  hear({ frame, kind, pitch, value, channel, by }: Sounded): void {
    if (kind === "on") this.strike(frame, pitch, value, channel, by);
    else if (kind === "off") this.lift(frame, pitch, channel, by);
    else if (kind === "pedal") this.pedal(frame, value, channel);
    else this.endWhere(frame, (note) => note.by === PLAYER && note.channel === channel);
  }

  /** Every note of PLAYER or MODEL ends, and pedals are up. */
  release(frame: number, by: By): void {
    this.pedals.clear();
    this.endWhere(frame, (note) => note.by === by);
  }

  /** Whether anything of this one sounds. */
  has(by: By): boolean {
    return [...this.open.values()].some((note) => note.by === by);
  }

  private strike(frame: number, pitch: number, velocity: number, channel: number, by: By): void {
    if (!this.knows(pitch)) return;
    const before = this.open.get(pitch);
    const same = before ? before.place : this.justEnded(frame, pitch);
    if (same >= 0 && this.all[same].start === frame) {
      const louder = Math.max(this.all[same].velocity, velocity);
      this.all[same] = { start: frame, end: null, pitch, velocity: louder, by };
      this.open.set(pitch, { place: same, channel, by, held: true });
    } else {
      if (before) this.end(frame, pitch, before);
      this.open.set(pitch, { place: this.all.length, channel, by, held: true });
      this.all.push({ start: frame, end: null, pitch, velocity, by });
    }
    this.changed();
  }

  /** A note that was struck and let go in this very frame is struck again: the same note. */
  private justEnded(frame: number, pitch: number): number {
    for (let place = this.all.length - 1; place >= 0 && this.all[place].start === frame; place--) {
      if (this.all[place].pitch === pitch) return place;
    }
    return -1;
  }

  private lift(frame: number, pitch: number, channel: number, by: By): void {
    const note = this.open.get(pitch);
    if (!note?.held || note.by !== by || (by === PLAYER && note.channel !== channel)) return;
    note.held = false;
    if (by === PLAYER && this.pedals.has(channel)) return;
    this.end(frame, pitch, note);
    this.changed();
  }

  private pedal(frame: number, value: number, channel: number): void {
    if (value >= PEDAL_DOWN) this.pedals.add(channel);
    else if (this.pedals.delete(channel)) {
      this.endWhere(frame, (note) => note.by === PLAYER && note.channel === channel && !note.held);
    }
  }

  private endWhere(frame: number, which: (note: Open) => boolean): void {
    for (const [pitch, note] of this.open) if (which(note)) this.end(frame, pitch, note);
    this.changed();
  }

  private end(frame: number, pitch: number, { place }: Open): void {
    this.open.delete(pitch);
    this.all[place] = { ...this.all[place], end: Math.max(frame, this.all[place].start + 1) };
  }

  private changed(): void {
    this.shown = this.lit = null;
  }
}
