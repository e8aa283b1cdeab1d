/**
 * Plays what the model means to play: a little ahead of its time, so that it sounds exactly then.
 *
 * An event that comes too late to be handed over in time, because inference or the page fell behind, moves
 * everything after it by as much: the music pauses and goes on, its rhythm kept. Events are never bunched, and none
 * is left out. What is late by no more than `LATE_S` is jitter: it is played at once and moves nothing.
 * (dsmr_export/runtime/live/playback.py has the same rules.)
 */

import type { KeyEvent } from "../host/performance";
import { MODEL } from "../protocol";
import { Timings } from "../timings";
import type { RollNote } from "../view";
import type { MusicClock } from "./clock";

/** What is due so soon is handed to the sound. Longer than a tick that is late, shorter than a wish to stop. */
export const AHEAD_S = 0.08;
/** MIDI out cannot take back what it was given, so it is given less. */
export const WIRE_AHEAD_S = 0.03;
/** Less than an ear hears in a rhythm: the most that two events come closer. */
export const LATE_S = 0.015;
/** A note of the model that sounds so long is ended. */
const MAX_NOTE_S = 10;

/** A note that sounds, or is about to. Moments in seconds of the Timebase. */
export interface Voice {
  release(at: number): void;
  cut(at: number): void;
}

/** Where the model's notes go. */
export interface Outlet {
  begin(pitch: number, velocity: number, at: number): Voice;
  /** The same for MIDI out. velocity: 0 ends the note. */
  wire(pitch: number, velocity: number, at: number): void;
}

export interface Reports {
  /** An event's time has come. */
  played(event: KeyEvent, at: number): void;
  /** Everything moved by so much. */
  late(seconds: number): void;
}

interface Strike {
  readonly frame: number;
  readonly voice: Voice;
}

/** An event that was handed to the sound: it happens at `at`. `strike`: the note that it begins or ends, if any. */
interface Handed {
  readonly event: KeyEvent;
  readonly at: number;
  readonly strike: Strike | null;
  wired: boolean;
}

export class Playback {
  readonly lateness = new Timings();
  waits = { count: 0, seconds: 0 };
  private queue: KeyEvent[] = [];
  private handed: Handed[] = [];
  /** Notes by pitch: as they will be when all that was handed over has happened, and as they are. */
  private last = new Map<number, Strike>();
  private sounding = new Map<number, Strike>();
  private shown: readonly RollNote[] | null = null;

  constructor(
    private readonly clock: MusicClock,
    private readonly outlet: Outlet,
    private readonly reports: Reports,
  ) {}

  /** The frame of the next event that has not happened; null where nothing is planned. */
  get nextFrame(): number | null {
    return (this.handed[0]?.event ?? this.queue[0])?.frame ?? null;
  }

  /** Notes that are to come. The same array until something changes. */
  get coming(): readonly RollNote[] {
    this.shown ??= notesOf([...this.handed.map(({ event }) => event), ...this.queue]);
    return this.shown;
  }

  put(events: readonly KeyEvent[]): void {
    this.queue.push(...events);
    this.shown = null;
  }

  /** What was planned does not follow any more. What was handed over happens: it is too late for another. */
  putAnew(events: readonly KeyEvent[]): void {
    this.queue = [];
    this.put(events);
  }

  /** Reports what has happened until now and hands over what is due soon. */
  run(now: number): void {
    this.happen(now);
    for (let event = this.next; event; event = this.next) {
      if (this.clock.seconds(event.frame) > now + AHEAD_S) break;
      if (event === this.queue[0]) this.queue.shift();
      this.handOver(event, now);
    }
    this.happen(now);
    for (const handed of this.handed) {
      if (handed.at > now + WIRE_AHEAD_S) break;
      this.wire(handed);
    }
  }

  /** Throws away what is to come, and ends what sounds, as a damper does or at once. */
  end(now: number, how: "release" | "cut"): void {
    this.happen(now);
    for (const { event, at, strike, wired } of this.handed) {
      if (event.kind === "on") strike?.voice.cut(now);
      if (event.kind === "on" && wired) this.outlet.wire(event.pitch, 0, at + 0.001);
    }
    for (const [pitch, strike] of this.sounding) {
      strike.voice[how](now);
      this.outlet.wire(pitch, 0, now);
      this.reports.played(off(pitch, this.clock.frame(now)), now);
    }
    this.queue = [];
    this.handed = [];
    this.last.clear();
    this.sounding.clear();
    this.shown = null;
  }

  /** What is to be handed over next: an event of the plan, or the end of a note that would sound too long. */
  private get next(): KeyEvent | undefined {
    const planned: KeyEvent | undefined = this.queue[0];
    const [oldest] = this.last; // notes are in the order of their beginning: no other is too long sooner
    if (!oldest) return planned;
    const [pitch, { frame }] = oldest;
    const longest = frame + this.clock.frames(MAX_NOTE_S);
    return planned && planned.frame <= longest ? planned : off(pitch, longest);
  }

  /** Nothing that was handed over before lies in the future where this one is late: only what is to come moves. */
  private handOver(event: KeyEvent, now: number): void {
    const late = Math.max(now - this.clock.seconds(event.frame), 0);
    this.lateness.add(1000 * late);
    if (late > LATE_S) {
      this.clock.delay(late);
      this.waits = { count: this.waits.count + 1, seconds: this.waits.seconds + late };
      this.reports.late(late);
    }
    const at = Math.max(this.clock.seconds(event.frame), now);
    const { pitch, velocity } = event;
    const ended = this.last.get(pitch) ?? null;
    ended?.voice.release(at);
    this.last.delete(pitch);
    if (event.kind === "off") {
      this.handed.push({ event, at, strike: ended, wired: false });
      return;
    }
    if (ended) {
      this.handed.push({ event: off(pitch, event.frame), at, strike: ended, wired: false });
    }
    const strike = { frame: event.frame, voice: this.outlet.begin(pitch, velocity, at) };
    this.last.set(pitch, strike);
    this.handed.push({ event, at, strike, wired: false });
  }

  private happen(now: number): void {
    while (this.handed.length && this.handed[0].at <= now) {
      const handed = this.handed.shift() as Handed;
      const { event, at, strike } = handed;
      this.wire(handed);
      if (event.kind === "on" && strike) this.sounding.set(event.pitch, strike);
      else this.sounding.delete(event.pitch);
      this.shown = null;
      this.reports.played(event, at);
    }
  }

  private wire(handed: Handed): void {
    if (handed.wired) return;
    handed.wired = true;
    this.outlet.wire(handed.event.pitch, handed.event.velocity, handed.at);
  }
}

function off(pitch: number, frame: number): KeyEvent {
  return { frame, kind: "off", pitch, velocity: 0 };
}

/** Notes of events in order; one whose end is not known yet has none. */
function notesOf(events: readonly KeyEvent[]): RollNote[] {
  const notes: RollNote[] = [];
  const open = new Map<number, number>();
  for (const { frame, kind, pitch, velocity } of events) {
    const place = open.get(pitch);
    if (place !== undefined) notes[place] = { ...notes[place], end: Math.max(frame, notes[place].start + 1) };
    open.delete(pitch);
    if (kind === "on") {
      open.set(pitch, notes.length);
      notes.push({ start: frame, end: null, pitch, velocity, by: MODEL });
    }
  }
  return notes;
}
