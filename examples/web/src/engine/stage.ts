/**
 * Where it sounds: the player's hands, the model's playback, the clock of the music, and the report of both to the
 * memory. What was played is told when its time has come, never before.
 */

import type { KeyEvent } from "../host/performance";
import { type FromWorker, MODEL, PLAYER, type Sounded, type ToWorker } from "../protocol";
import { Timings } from "../timings";
import type { RollNote } from "../view";
import { MusicClock, type Timebase } from "./clock";
import { Playback, type Voice } from "./playback";
import { type Act, Player } from "./player";
import { Roll } from "./roll";

/** The first note of an answer sounds no sooner than this after its plan came: time for the next few. */
const START_S = 0.03;
/** How far ahead the model plans. */
const PLAN_S = 1;
/** A silence that nobody plans is remembered up to this. */
const LONGEST_REST_S = 10;

export interface Outlets {
  /** The built-in sound. */
  begin(pitch: number, velocity: number, at: number): Voice;
  silence(): void;
  /** MIDI out: the model's notes, and the player's own. */
  note(pitch: number, velocity: number, at: number): void;
  quiet(): void;
}

export interface StageEvents {
  tell(message: Extract<ToWorker, { kind: "sounded" | "time" }>): void;
  /** A request whose answer nobody waits for. */
  release(frame: number): void;
  stop(): void;
  /** The player strikes a key that will be remembered: before it is. */
  struck(at: number): void;
  late(seconds: number): void;
  changed(): void;
}

type Planned = Extract<FromWorker, { kind: "planned" }>;

export class Stage {
  phase: "listening" | "thinking" | "answering" = "listening";
  readonly roll = new Roll();
  readonly player: Player;
  answers = new Timings();
  playback: Playback;
  /** The player struck a key since the last answer. */
  asked = false;
  private clock = new MusicClock(10);
  /** The memory is elsewhere or nowhere: what is played sounds, and is not remembered. */
  private away = true;
  private take = 0;
  private moment = 0;
  /** Said to the worker: nothing can sound before this frame any more; and how far to plan. */
  private certain = 0;
  private until = 0;
  private unsaid: Sounded[] = [];
  private latest = 0;
  private latestOn = -1;
  /** Something of the latest frame may wait for its end. */
  private unsettled = false;
  private reached = 0;
  private wished: number | null = null;

  constructor(
    private readonly time: Timebase,
    private readonly outlets: Outlets,
    private readonly events: StageEvents,
  ) {
    this.player = new Player((pitch, velocity) => outlets.begin(pitch, velocity, time.now()));
    this.playback = this.newPlayback();
  }

  /** Another bundle: an empty piece. stepMs: of a frame. */
  open(stepMs: number, pitchRange: readonly [number, number], frame: number): void {
    this.clock = new MusicClock(stepMs);
    this.playback = this.newPlayback();
    this.answers = new Timings();
    this.roll.pitchRange = pitchRange;
    this.arrive(frame, []);
  }

  /** The present, in frames with a fraction, as it is shown: while the model thinks, time stands. */
  get now(): number {
    if (this.phase === "thinking") return this.reached;
    const now = this.clock.position(this.time.now());
    const waits = this.phase === "answering" && this.playback.nextFrame === null;
    return waits ? Math.min(now, Math.max(this.reached, this.latest)) : now;
  }

  /** Milliseconds of a frame. */
  get stepMs(): number {
    return this.clock.stepMs;
  }

  /** Whether time passes, so that ticks are needed. */
  get moves(): boolean {
    return !this.away && !this.clock.stands;
  }

  /** Does what is due. wished: a moment that has just been, say a key's; returns when it is taken to have been. */
  advance(wished = this.time.now()): number {
    const at = Math.max(this.moment, Math.min(wished, this.time.now()));
    this.moment = at;
    this.playback.run(at);
    this.rest(at);
    this.pass(at);
    return at;
  }

  // The player

  /** The key sounds at once, whatever else it means. */
  act(act: Act, wished = this.time.now()): void {
    this.player.act(act, this.time.now());
    if (this.away) return;
    const at = this.advance(wished);
    const { kind, channel, pitch, value } = act;
    // What the model has no word for sounds, and means nothing.
    if ((kind === "on" || kind === "off") && !this.roll.knows(pitch)) return;
    if (kind === "on") {
      this.asked = true;
      this.events.struck(at);
    }
    // Time begins with a note; where it stood in a long rest, with the end of one, too.
    if (kind === "on" || (kind !== "pedal" && this.roll.has(PLAYER))) this.clock.start(at);
    this.hear({ frame: this.frame(at), kind, pitch, value, channel, by: PLAYER });
    this.flush();
    this.events.changed();
  }

  /** The player's notes end, for the memory and the roll; keys that are down may still sound. */
  release(at: number): void {
    if (!this.roll.has(PLAYER)) return;
    this.flush();
    this.clock.start(at);
    const frame = this.frame(at);
    this.events.release(frame);
    this.roll.release(frame, PLAYER);
    this.note(frame, false);
  }

  // The model

  /** Before a mark: all that was heard becomes certain, so that the mark holds it. */
  settle(at: number): void {
    this.flush();
    if (!this.unsettled) return;
    // A note lasts a frame at least: one that was struck in the latest frame may end in the next.
    const frame = this.latest + (this.latestOn === this.latest ? 2 : 1);
    this.say(Math.max(this.certain, frame), Math.max(this.certain, frame));
    this.unsettled = false;
    if (this.clock.stands) this.clock.stand(Math.max(this.clock.frame(at), frame));
  }

  /** An answer was wished for: the take to ask for, and from which frame on. frame: as it was asked for once. */
  think(at: number, frame = this.frame(at)): { take: number; frame: number } {
    this.clock.align(at, frame);
    this.phase = "thinking";
    this.asked = false;
    this.reached = frame;
    this.wished = at;
    this.events.changed();
    return { take: ++this.take, frame };
  }

  /** The worker says where the answer begins. */
  answered(take: number, frame: number): void {
    if (take === this.take && this.phase === "thinking") this.reached = Math.max(this.reached, frame);
  }

  planned({ take, events, reached, anew }: Planned): void {
    if (take !== this.take || this.phase === "listening") return;
    if (anew) this.playback.putAnew(events);
    else this.playback.put(events);
    if (this.phase === "thinking" && (events.length > 0 || reached > this.reached)) this.begin();
    this.reached = anew ? reached : Math.max(this.reached, reached);
    if (this.phase === "answering") this.advance();
    this.events.changed();
  }

  /** The answer ends, if there is one; what it was about to play is never heard. */
  end(at: number, how: "release" | "cut"): void {
    if (this.phase === "listening") return;
    this.take++;
    this.wished = null;
    this.playback.end(at, how);
    this.phase = "listening";
    this.flush();
    this.events.stop();
    this.events.changed();
  }

  /** Everything is silent, at once; it is remembered to have ended now. */
  silence(): void {
    const at = this.advance();
    this.end(at, "cut");
    this.player.end(at);
    this.outlets.silence();
    this.outlets.quiet();
    if (!this.away) {
      this.release(at);
      this.pass(at);
    }
    this.asked = false;
    this.events.changed();
  }

  /** A keyboard is gone, and what it held with it. */
  letGo(): void {
    const at = this.advance();
    this.player.end(at);
    if (!this.away) this.release(at);
    this.flush();
    this.events.changed();
  }

  // Going elsewhere

  /** Silence, and time stands, until `arrive` or `stay`. */
  leave(): void {
    this.silence();
    this.settle(this.moment);
    this.clock.stand(this.frame(this.moment));
    this.away = true;
  }

  /** The memory is where it was. */
  stay(): void {
    this.away = false;
    this.events.changed();
  }

  /** The present is this frame, and time stands there until something is played. */
  arrive(frame: number, notes: readonly RollNote[], settled = true): void {
    this.away = false;
    this.clock.stand(frame);
    this.roll.become(notes, frame);
    this.latest = this.certain = this.until = frame;
    this.latestOn = -1;
    this.unsettled = !settled;
    this.unsaid = [];
    this.asked = false;
    this.events.tell({ kind: "time", certain: frame, until: frame });
    this.events.changed();
  }

  /** There is no memory any more; the notes are still there to be saved. */
  close(): void {
    const frame = this.clock.frame(this.moment);
    this.take++;
    this.phase = "listening";
    this.away = true;
    this.playback.end(this.moment, "cut");
    this.outlets.silence();
    this.outlets.quiet();
    this.arrive(frame, this.roll.notes);
    this.away = true;
  }

  /** Tells what was heard; before every request. */
  flush(): void {
    if (!this.unsaid.length) return;
    this.events.tell({ kind: "sounded", events: this.unsaid });
    this.unsaid = [];
  }

  /** The notes that the memory holds, for a state that is saved now. */
  remembered(): readonly RollNote[] {
    const at = this.advance();
    if (this.phase === "listening") this.settle(at);
    // In an answer the present frame is not over: what began in it is none of the state yet.
    const frame = this.certain;
    return this.phase === "listening"
      ? this.roll.notes
      : this.roll.notes.filter(({ start }) => start < frame);
  }

  private newPlayback(): Playback {
    const { outlets } = this;
    return new Playback(
      this.clock,
      {
        begin: (pitch, velocity, at) => outlets.begin(pitch, velocity, at),
        wire: (pitch, velocity, at) => outlets.note(pitch, velocity, at),
      },
      {
        played: (event, at) => this.played(event, at),
        late: (seconds) => this.events.late(seconds),
      },
    );
  }

  /** The music begins where the worker said, but not in the past. */
  private begin(): void {
    const soon = this.time.now() + START_S;
    if (this.clock.seconds(this.reached) < soon) this.clock.align(soon, this.reached);
    this.phase = "answering";
  }

  private played({ frame, kind, pitch, velocity }: KeyEvent, at: number): void {
    if (kind === "on" && this.wished !== null) {
      this.answers.add(1000 * (at - this.wished));
      this.wished = null;
    }
    this.hear({ frame, kind, pitch, value: velocity, channel: 0, by: MODEL });
  }

  private hear(event: Sounded): void {
    this.unsaid.push(event);
    this.roll.hear(event);
    // A pedal alone is no event of the piece: a rest goes on.
    if (event.kind !== "pedal" || this.roll.has(PLAYER)) this.note(event.frame, event.kind === "on");
    this.events.changed();
  }

  private note(frame: number, on: boolean): void {
    this.latest = Math.max(this.latest, frame);
    if (on) this.latestOn = frame;
    this.unsettled = true;
  }

  /** The frame of a moment. What was said to be certain stays so; and what the player does in an answer, short of
   * ending it, must not overtake what the model is about to play: the music may be waiting for it. */
  private frame(at: number): number {
    if (this.phase === "thinking") return this.reached;
    const frame = this.clock.frame(at);
    return Math.max(this.phase === "answering" ? Math.min(frame, this.horizon) : frame, this.certain);
  }

  /** In an answer: what has not happened is not certain, and beyond the plan nothing is known. */
  private get horizon(): number {
    return this.playback.nextFrame ?? this.reached;
  }

  private rest(at: number): void {
    if (this.away || this.phase !== "listening" || this.clock.stands) return;
    const latest = this.latest + this.clock.frames(LONGEST_REST_S);
    if (this.clock.frame(at) < latest) return;
    this.say(latest, latest);
    this.unsettled = false;
    this.clock.stand(latest);
    this.events.changed();
  }

  /** Tells what was heard, and until when nothing more can sound. */
  private pass(at: number): void {
    this.flush();
    if (this.away || this.clock.stands || this.phase === "thinking") return;
    const until = this.phase === "answering" ? this.clock.frame(at + PLAN_S) : this.frame(at);
    this.say(this.frame(at), until);
  }

  private say(certain: number, until: number): void {
    if (certain <= this.certain && until === this.until) return;
    this.certain = Math.max(certain, this.certain);
    this.until = until;
    this.events.tell({ kind: "time", certain: this.certain, until });
  }
}
