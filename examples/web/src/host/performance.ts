/**
 * The canonical performance: piano notes on a grid of frames, the same from a MIDI file and from live events.
 *
 * Rules: frame = floor(seconds / step + 1/2); the pedal of a channel (CC64 >= 64) holds a note until it is lifted; a
 * note struck again while it sounds ends at that frame; a note lasts at least one frame; strikes of one pitch within
 * one frame are one note, as loud as the loudest, released with the last of them. (dsmr_export/runtime/performance.py
 * does the same, so a model hears here exactly what it was trained on.)
 */

import { PEDAL_DOWN } from "./controllers";

const LOUDEST = 127;

/** One note. `start` and `end` in frames (end > start), `pitch` 0-127, `velocity` 1-127. */
export interface Note {
  readonly start: number;
  readonly end: number;
  readonly pitch: number;
  readonly velocity: number;
}

/** A note that begins or ends at a frame. `velocity` is 0 for `off`. */
export interface KeyEvent {
  readonly frame: number;
  readonly kind: "on" | "off";
  readonly pitch: number;
  readonly velocity: number;
}

/** The frame of a moment in seconds; halves go up. */
export function frameAt(seconds: number, stepMs: number): number {
  return Math.floor(seconds * (1000 / stepMs) + 0.5);
}

/** A note under way: who struck it, whether the key is still down, whether its end is decided. */
interface Voice {
  readonly start: number;
  readonly pitch: number;
  velocity: number;
  channel: number;
  track: number;
  held: boolean;
  released: boolean;
}

/**
 * Raw key and pedal events in, canonical `KeyEvent` out, in token order, each as soon as it is certain.
 *
 * A frame is certain once a later one begins, so every method returns the events that became final by moving on to
 * its `frame`: offs by (onset, pitch), then ons by pitch. Frames that run backwards (a jittering clock) count as now.
 * A release belongs to the `track` and `channel` that struck the note: with two hands in two tracks, the left hand
 * letting go of a key does not end the note that the right hand struck on it since.
 */
export class Recorder {
  private now = 0;
  private leftOut = 0;
  private sounding = new Map<number, Voice>(); // began before this frame
  private struck = new Map<number, Voice>(); // began in this frame
  private ended = new Map<number, Voice>(); // began before, ends in this frame
  private readonly pedals = new Set<number>(); // channels with the pedal down

  /** pitchRange: lowest and highest pitch, inclusive, that the vocabulary can say. */
  constructor(private readonly pitchRange: readonly [number, number]) {}

  /** The present. */
  get frame(): number {
    return this.now;
  }

  /** How many notes were left out because their pitch is out of range. */
  get dropped(): number {
    return this.leftOut;
  }

  /** Whether everything that came is final: nothing of the present frame waits for its end. */
  get settled(): boolean {
    return this.struck.size === 0 && this.ended.size === 0;
  }

  /** A key goes down. Velocity 0 is a release, as MIDI has it. */
  noteOn(frame: number, pitch: number, velocity: number, channel = 0, track = 0): KeyEvent[] {
    if (velocity <= 0) return this.noteOff(frame, pitch, channel, track);
    const final = this.advance(frame);
    if (pitch < this.pitchRange[0] || pitch > this.pitchRange[1]) {
      this.leftOut++;
      return final;
    }
    const loudness = Math.min(velocity, LOUDEST);
    const voice = this.struck.get(pitch);
    if (voice) {
      voice.velocity = Math.max(voice.velocity, loudness);
      Object.assign(voice, { channel, track, held: true, released: false });
      return final;
    }
    const previous = this.sounding.get(pitch);
    if (previous) this.end(previous);
    this.struck.set(pitch, begun(this.now, pitch, loudness, channel, track));
    return final;
  }

  /** A key comes up; its note ends here unless the channel's pedal holds it. */
  noteOff(frame: number, pitch: number, channel = 0, track = 0): KeyEvent[] {
    const final = this.advance(frame);
    const voice = this.struck.get(pitch) ?? this.sounding.get(pitch);
    if (voice?.held && voice.channel === channel && voice.track === track) {
      voice.held = false;
      if (!this.pedals.has(channel)) this.release(voice);
    }
    return final;
  }

  /** The sustain pedal (CC64) moves: down from 64 on; lifting it ends the notes whose keys are up. */
  pedal(frame: number, value: number, channel = 0): KeyEvent[] {
    const final = this.advance(frame);
    if (value >= PEDAL_DOWN) this.pedals.add(channel);
    else if (this.pedals.delete(channel))
      this.releaseAll((voice) => voice.channel === channel && !voice.held);
    return final;
  }

  /** Every note of the channel ends, pedal or not (CC120 and CC123: a sender's cure for stuck notes). */
  allOff(frame: number, channel = 0): KeyEvent[] {
    const final = this.advance(frame);
    this.releaseAll((voice) => voice.channel === channel);
    return final;
  }

  /** Every note of a track ends, pedal or not, and all pedals are up. */
  releaseTrack(frame: number, track: number): KeyEvent[] {
    const final = this.advance(frame);
    this.pedals.clear();
    this.releaseAll((voice) => voice.track === track);
    return final;
  }

  /** Time goes on to `frame`; nothing else happened before it. */
  advance(frame: number): KeyEvent[] {
    const final: KeyEvent[] = [];
    while (this.now < frame && !this.settled) this.closeFrame(final); // twice where a note is one frame long
    this.now = Math.max(this.now, frame);
    return final;
  }

  /** The input ends at `frame` (default: now), and all that sounds with it; then it may start anew. */
  finish(frame = this.now): KeyEvent[] {
    const final = this.advance(frame);
    this.releaseAll(() => true);
    final.push(...this.advance(this.now + 2));
    this.pedals.clear();
    this.now = 0;
    return final;
  }

  /** The pitches that sound, each with the track that struck it. */
  owners(): Map<number, number> {
    return new Map(this.voices().map((voice) => [voice.pitch, voice.track]));
  }

  /** Begins anew at `frame` with notes that sound already: pitch to frame of onset, pitch to track. */
  resume(frame: number, onsets: ReadonlyMap<number, number>, tracks: ReadonlyMap<number, number>): void {
    this.now = frame;
    this.struck.clear();
    this.ended.clear();
    this.pedals.clear();
    this.sounding.clear();
    for (const [pitch, onset] of onsets) {
      this.sounding.set(pitch, begun(onset, pitch, 1, 0, tracks.get(pitch) ?? 0));
    }
  }

  private voices(): Voice[] {
    return [...this.sounding.values(), ...this.struck.values()];
  }

  private releaseAll(which: (voice: Voice) => boolean): void {
    for (const voice of this.voices()) {
      if (!which(voice)) continue;
      voice.held = false;
      this.release(voice);
    }
  }

  private release(voice: Voice): void {
    if (voice.start === this.now)
      voice.released = true; // ends in the next frame: a note lasts at least one
    else this.end(voice);
  }

  private end(voice: Voice): void {
    this.sounding.delete(voice.pitch);
    this.ended.set(voice.pitch, voice);
  }

  /** Everything of the current frame, then a step to the next, where this frame's shortest notes end. */
  private closeFrame(final: KeyEvent[]): void {
    const offs = [...this.ended.values()].sort((a, b) => a.start - b.start || a.pitch - b.pitch);
    const ons = [...this.struck.values()].sort((a, b) => a.pitch - b.pitch);
    for (const { pitch } of offs) final.push({ frame: this.now, kind: "off", pitch, velocity: 0 });
    for (const { pitch, velocity } of ons) final.push({ frame: this.now, kind: "on", pitch, velocity });
    this.ended.clear();
    this.struck.clear();
    for (const voice of ons) (voice.released ? this.ended : this.sounding).set(voice.pitch, voice);
    this.now++;
  }
}

function begun(start: number, pitch: number, velocity: number, channel: number, track: number): Voice {
  return { start, pitch, velocity, channel, track, held: true, released: false };
}

/** Notes, by (start, pitch), from canonical key events: every `on` has its `off` later. */
export function toNotes(events: Iterable<KeyEvent>): Note[] {
  const open = new Map<number, KeyEvent>();
  const notes: Note[] = [];
  for (const event of events) {
    const began = open.get(event.pitch);
    if (event.kind === "on") open.set(event.pitch, event);
    else if (began) {
      open.delete(event.pitch);
      notes.push({ start: began.frame, end: event.frame, pitch: event.pitch, velocity: began.velocity });
    }
  }
  return notes.sort((a, b) => a.start - b.start || a.pitch - b.pitch);
}

/** A canonical performance in token order: by frame; offs by (onset, pitch), then ons by pitch. */
export function toEvents(notes: readonly Note[]): KeyEvent[] {
  const offs = [...notes].sort((a, b) => a.end - b.end || a.start - b.start || a.pitch - b.pitch);
  const events: KeyEvent[] = [];
  let position = 0;
  const endUpTo = (frame: number) => {
    for (; position < offs.length && offs[position].end <= frame; position++) {
      const { end, pitch } = offs[position];
      events.push({ frame: end, kind: "off", pitch, velocity: 0 });
    }
  };
  for (const { start, pitch, velocity } of notes) {
    endUpTo(start);
    events.push({ frame: start, kind: "on", pitch, velocity });
  }
  endUpTo(Number.POSITIVE_INFINITY);
  return events;
}
