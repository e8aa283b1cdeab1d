/**
 * Standard MIDI files: read one as a canonical performance, write a performance as one.
 * (dsmr_export/runtime/midi.py does the same with mido.)
 *
 * What midi-file takes differently than mido does: it refuses system common and real-time messages, which do not belong
 * in files, a meta event whose length is not its type's, and a text of more than about 100,000 characters; it keeps the
 * running status over a system exclusive message, the time before a meta event of a type that it does not know, and
 * what comes before a text that its track's end cuts short. A track without its end is good to both.
 */

import { type MidiData, type MidiEvent, parseMidi } from "midi-file";
import { ALL_NOTES_OFF, ALL_SOUND_OFF, RESET, SUSTAIN } from "./controllers";
import { HostError } from "./errors";
import { type KeyEvent, type Note, Recorder, toEvents, toNotes } from "./performance";

/** A longer file is damaged (a broken delta time) or hostile: each second of silence becomes a token. */
const MAX_HOURS = 24;

const DEFAULT_TEMPO = 500_000; // microseconds per quarter note
const HIGHEST = 127; // what a byte of data may say
const CONTROLS = [SUSTAIN, ALL_SOUND_OFF, RESET, ALL_NOTES_OFF];

export interface Reading {
  readonly notes: Note[];
  /** How many notes were left out because the vocabulary has no word for their pitch. */
  readonly dropped: number;
  /** The frame of the file's end. */
  readonly end: number;
}

/**
 * The canonical performance of a Standard MIDI File.
 *
 * name: what messages call the file. pitchRange: lowest and highest pitch, inclusive. Throws HostError "midi" for what
 * is empty, not MIDI, cut short, damaged, endless, or without a note in range.
 */
export function readMidi(
  data: Uint8Array,
  name: string,
  pitchRange: readonly [number, number],
  stepMs: number,
): Reading {
  const midi = parsed(data, name);
  const recorder = new Recorder(pitchRange);
  const events: KeyEvent[] = [];
  let end = 0;
  for (const { frame, track, event } of timed(midi, stepMs, name)) {
    end = frame;
    for (const certain of record(recorder, frame, track, event)) events.push(certain);
  }
  for (const certain of recorder.finish(end)) events.push(certain);
  const { dropped } = recorder;
  if (!events.length && dropped) {
    const [low, high] = pitchRange;
    throw refused(
      name,
      `all ${dropped} notes lie outside the pitches ${low}-${high} of the vocabulary; transpose it`,
    );
  }
  if (!events.length) throw refused(name, "holds no notes; give a MIDI file with at least one");
  return { notes: toNotes(events), dropped, end };
}

function record(recorder: Recorder, frame: number, track: number, event: MidiEvent): KeyEvent[] {
  switch (event.type) {
    case "noteOn":
      return recorder.noteOn(frame, clipped(event.noteNumber), clipped(event.velocity), event.channel, track);
    case "noteOff":
      return recorder.noteOff(frame, clipped(event.noteNumber), event.channel, track);
    case "controller":
      if (event.controllerType === SUSTAIN) return recorder.pedal(frame, clipped(event.value), event.channel);
      if (event.controllerType === RESET) return recorder.pedal(frame, 0, event.channel);
      return recorder.allOff(frame, event.channel);
    default:
      return [];
  }
}

/** Only broken structure is refused. */
function clipped(value: number): number {
  return Math.min(value, HIGHEST);
}

function parsed(data: Uint8Array, name: string): MidiData {
  if (!data.length) throw refused(name, "is empty (0 bytes); give a Standard MIDI File");
  if (chunkName(data, 0) !== "MThd") {
    throw refused(name, "is not a MIDI file (it does not begin with MThd); give a Standard MIDI File (.mid)");
  }
  if (!isWhole(data)) throw cutShort(name);
  let midi: MidiData;
  try {
    midi = parseMidi(data);
  } catch (error) {
    throw damaged(name, error instanceof Error ? error.message : String(error)); // it throws plain text
  }
  for (const track of midi.tracks) {
    if (isCut(track.at(-1))) throw cutShort(name);
    if (track.some((event) => event.deltaTime < 0)) throw damaged(name, "a time of more than four bytes");
  }
  const { ticksPerBeat, ticksPerFrame } = midi.header;
  if (!ticksPerBeat && !ticksPerFrame) {
    throw refused(
      name,
      "is a damaged MIDI file (its header gives no time division); re-save it in an editor",
    );
  }
  return midi;
}

/** Whether the header and all tracks are there to their ends: the parser takes what there is without a word. */
function isWhole(data: Uint8Array): boolean {
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  let [start, tracks] = [0, 0];
  for (let chunk = 0; chunk <= tracks; chunk++) {
    if (start + 8 > data.length) return false;
    const length = view.getUint32(start + 4);
    if (start + 8 + length > data.length || (chunk === 0 && length < 6)) return false;
    if (chunk === 0) tracks = view.getUint16(10);
    else if (chunkName(data, start) !== "MTrk") return true; // which the parser says better
    start += 8 + length;
  }
  return true;
}

/** Whether a track's end cuts its last event: what it lacks was read as undefined. */
function isCut(last: MidiEvent | undefined): boolean {
  return Object.values(last ?? {}).some((value) => value === undefined || Number.isNaN(value));
}

function chunkName(data: Uint8Array, start: number): string {
  return String.fromCharCode(...data.subarray(start, start + 4));
}

interface Timed {
  readonly frame: number;
  readonly track: number;
  readonly event: MidiEvent;
}

/** What matters of all tracks, in order of time; whole numbers: no drift. */
function* timed(midi: MidiData, stepMs: number, name: string): Generator<Timed> {
  const { ticksPerBeat = 0, framesPerSecond = 0, ticksPerFrame = 0 } = midi.header;
  const smpte = !ticksPerBeat;
  // 29 means 30 drop-frame: 30000/1001 a second.
  const [unit, rate] = framesPerSecond === 29 ? [1001, 30_000] : [1, framesPerSecond];
  const perSecond = BigInt(smpte ? rate * ticksPerFrame : ticksPerBeat * 1_000_000);
  const limit = BigInt(MAX_HOURS * 3600) * perSecond;
  const half = BigInt(stepMs) * perSecond;
  let [tempo, lastTick, elapsed] = [DEFAULT_TEMPO, 0, 0n];
  for (const { tick, track, event } of merged(midi)) {
    elapsed += BigInt(tick - lastTick) * BigInt(smpte ? unit : tempo);
    lastTick = tick;
    if (elapsed > limit) {
      throw refused(name, `lasts more than ${MAX_HOURS} hours (a damaged time?); cut it into shorter files`);
    }
    if (event.type === "setTempo") tempo = event.microsecondsPerBeat;
    // floor(seconds / step + 1/2), seconds = elapsed / perSecond
    else yield { frame: Number((2000n * elapsed + half) / (2n * half)), track, event };
  }
}

/** The events of all tracks that matter here, by tick; format 2: track after track. */
function merged(midi: MidiData): { tick: number; track: number; event: MidiEvent }[] {
  const all: { tick: number; track: number; event: MidiEvent }[] = [];
  let begin = 0;
  for (const [track, events] of midi.tracks.entries()) {
    let tick = begin;
    for (const event of events) {
      tick += event.deltaTime;
      if (matters(event)) all.push({ tick, track, event });
    }
    if (midi.header.format === 2) begin = tick;
  }
  return all.sort((a, b) => a.tick - b.tick);
}

function matters(event: MidiEvent): boolean {
  switch (event.type) {
    case "noteOn":
    case "noteOff":
    case "setTempo":
    case "endOfTrack":
      return true;
    case "controller":
      return CONTROLS.includes(event.controllerType);
    default:
      return false;
  }
}

const TICKS_PER_QUARTER = DEFAULT_TEMPO / 1000; // so one tick is one millisecond
/** The value MIDI gives to "no release velocity measured". */
const RELEASE = 64;

/**
 * A performance as a one-track MIDI file, byte for byte what the Python runtime writes: reading it back gives the same
 * performance. (midi-file's own writer copies the whole track with every event: 20,000 notes take it a minute.)
 */
export function writeMidi(notes: readonly Note[], stepMs: number): Uint8Array<ArrayBuffer> {
  const track = [0, 0xff, 0x51, 3, ...bigEndian(DEFAULT_TEMPO, 3), 0, 0xc0, 0];
  let [now, status] = [0, 0xc0];
  for (const { frame, kind, pitch, velocity } of toEvents(notes)) {
    track.push(...variableLength((frame - now) * stepMs));
    const next = kind === "on" ? 0x90 : 0x80;
    if (next !== status) track.push(next); // else it is the running status
    track.push(pitch, kind === "on" ? velocity : RELEASE);
    [now, status] = [frame, next];
  }
  track.push(0, 0xff, 0x2f, 0);
  const header = [0, 1, TICKS_PER_QUARTER].flatMap((value) => bigEndian(value, 2)); // format, tracks, division
  return Uint8Array.from([...chunk("MThd", header), ...chunk("MTrk", track)]);
}

function chunk(name: string, content: readonly number[]): number[] {
  return [...name].map((letter) => letter.charCodeAt(0)).concat(bigEndian(content.length, 4), content);
}

function bigEndian(value: number, bytes: number): number[] {
  return Array.from({ length: bytes }, (_, i) => (value >>> (8 * (bytes - 1 - i))) & 0xff);
}

/** A time in ticks, seven bits a byte, all but the last with the highest bit set. */
function variableLength(ticks: number): number[] {
  const bytes = [ticks & 0x7f];
  for (let rest = ticks >>> 7; rest; rest >>>= 7) bytes.unshift(0x80 | (rest & 0x7f));
  return bytes;
}

function cutShort(name: string): HostError {
  return refused(name, "is cut short (the data end inside a track); get the file again");
}

function damaged(name: string, what: string): HostError {
  return refused(name, `is a damaged MIDI file (${what}); get the file again or re-save it in an editor`);
}

function refused(name: string, what: string): HostError {
  return new HostError("midi", `${name}: ${what}.`);
}
