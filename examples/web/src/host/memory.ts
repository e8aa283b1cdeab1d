/**
 * What an instrument remembers: everything that sounded, whoever played it, and what is meant to sound next.
 *
 * What really sounds goes through one recorder and is committed: canonical tokens. The model runs ahead of it: it
 * plans, sampling tokens for a future that has not sounded yet. As long as what sounds is what was planned, a
 * committed token is the next of the plan and costs nothing; when it is not, the state goes back to an earlier
 * copy, hears the committed tokens again, and the plan is forgotten. So the state never holds anything but what
 * sounded. (dsmr_export/runtime/memory.py does the same.)
 */

import type { Bundle } from "./bundle";
import { Encoder } from "./events";
import { Paced } from "./grammar";
import { Pcg64 } from "./pcg64";
import { frameAt, type KeyEvent, Recorder } from "./performance";
import { PlanMasks } from "./plan_masks";
import { hear } from "./prompt";
import { checkSampling, paceBias, type Sampling, sample } from "./sampling";
import type { Snapshot, Stream } from "./stream";
import { type By, MODEL, PLAYER } from "./tracks";

/** What is sampled with unless told otherwise: nearly the model's own distribution, because a lower temperature
 * or top-p cuts pauses first, whose probability is spread over a hundred shifts. */
export const SAMPLING: Sampling = { temperature: 1, topK: 0, topP: 0.98, minP: 0 };

/** A plan that breaks goes back to a copy of the state and feeds at most so many tokens again. */
const ANCHOR_TOKENS = 16;

/** The longest plan: look-ahead is bounded in tokens too, whatever the model does within a frame. */
export const PLAN_TOKENS = 512;

/** More tokens than this at once are fed in segments: a flood, never a pianist. */
const STEPPED_TOKENS = 128;

/** A whole memory at one moment: the stream, the grammar, the random generator, and what the player holds. */
export interface Moment {
  readonly stream: Snapshot;
  readonly mask: Paced;
  readonly rng: ReturnType<Pcg64["state"]>;
  readonly player: readonly number[];
  /** Frame of each of the latest tokens, as many as the longest horizon: for what is shown of the memory. */
  readonly frames: readonly number[];
}

/** A copy of the state after `position` tokens. */
interface Anchor {
  readonly position: number;
  readonly stream: Snapshot;
  readonly mask: Paced;
}

/** A token that was sampled ahead, and the generator's state before it. */
interface Planned {
  readonly token: number;
  readonly rng: ReturnType<Pcg64["state"]>;
}

export class Memory {
  sampling: Sampling = SAMPLING;
  private rng = Pcg64.seeded(0);
  private readonly mask: Paced;
  private readonly masks: PlanMasks;
  private recorder: Recorder;
  private encoder: Encoder;
  private bias: Float32Array;
  private planned: Planned[] = [];
  private planEvents = 0;
  private planFrom = 0;
  private pendingPitch = 0;
  /** Copies of the state, oldest first, and the tokens committed since the first of them. */
  private anchors: Anchor[] = [];
  private history: number[] = [];
  private spare: Snapshot[] = [];
  /** Frames of the latest committed tokens; twice as many as asked for at most. */
  private tokenFrames: number[] = [];
  private readonly longest: number;

  constructor(
    readonly bundle: Bundle,
    readonly stream: Stream,
  ) {
    this.mask = new Paced(bundle.grammar(true));
    this.masks = new PlanMasks(bundle.table);
    this.recorder = new Recorder(bundle.table.pitchRange);
    this.encoder = new Encoder(bundle.table);
    this.bias = paceBias(bundle.table, this.ownPace);
    this.longest = Math.max(...bundle.manifest.schedule.horizons);
    this.begin();
  }

  /** The pace that the bundle asks for; 0 where it asks for none. */
  get ownPace(): number {
    return this.bundle.manifest.generation?.pace ?? 0;
  }

  /** The present: the last moment that anything was said about. */
  get frame(): number {
    return Math.max(this.recorder.frame, this.encoder.frame);
  }

  /** Tokens committed since the beginning, BOS included. */
  get position(): number {
    return this.stream.position - this.planned.length;
  }

  /** Tokens of the plan. */
  get planLength(): number {
    return this.planned.length;
  }

  /** The frame that the plan has reached. */
  get planFrame(): number {
    return this.mask.frame;
  }

  /** Whether everything that was heard is committed; else time must pass first. */
  get settled(): boolean {
    return this.recorder.settled;
  }

  /** So many seconds in frames. */
  frames(seconds: number): number {
    return frameAt(seconds, this.bundle.table.stepMs);
  }

  /** From the next token on. pace: null = the bundle's. Throws HostError "input". */
  set(sampling: Sampling, pace: number | null): void {
    checkSampling(sampling);
    this.bias = paceBias(this.bundle.table, pace ?? this.ownPace);
    this.sampling = sampling;
  }

  /** The frame of the oldest of the last `tokens` tokens: since when a layer remembers. */
  since(tokens: number): number {
    return this.tokenFrames[Math.max(this.tokenFrames.length - tokens, 0)] ?? 0;
  }

  // What sounds. What it returns: false if it was not what was planned, so that the plan is forgotten.

  /** A new piece: forgets everything but the random generator, then hears BOS and a prompt. */
  begin(ids: readonly number[] = [], progress?: (done: number) => void): void {
    this.clearPlan();
    this.stream.reset();
    this.mask.reset();
    this.tokenFrames = [];
    this.feedSegments([this.bundle.manifest.special.bos, ...ids], progress);
    this.goOn(new Map([...this.mask.onsets.keys()].map((pitch) => [pitch, MODEL])));
  }

  /** A note begins. A note of the model that the player strikes is the player's from there on. */
  noteOn(frame: number, pitch: number, velocity: number, channel: number, by: By): boolean {
    const taken = by === PLAYER && this.planned.length > 0 && this.recorder.owners().get(pitch) === MODEL;
    if (taken) this.forgetPlan();
    return this.commit(this.recorder.noteOn(frame, pitch, velocity, own(channel, by), by)) && !taken;
  }

  noteOff(frame: number, pitch: number, channel: number, by: By): boolean {
    return this.commit(this.recorder.noteOff(frame, pitch, own(channel, by), by));
  }

  /** The player's sustain pedal. It holds notes of the player only. */
  pedal(frame: number, value: number, channel: number): boolean {
    return this.commit(this.recorder.pedal(frame, value, own(channel, PLAYER)));
  }

  allOff(frame: number, channel: number): boolean {
    return this.commit(this.recorder.allOff(frame, own(channel, PLAYER)));
  }

  /** Every note of PLAYER or MODEL ends, and pedals are up. */
  release(frame: number, by: By): boolean {
    return this.commit(this.recorder.releaseTrack(frame, by));
  }

  /** Time passes: what happened before `frame` is certain. */
  advance(frame: number): boolean {
    let kept = this.commit(this.recorder.advance(frame));
    if (this.recorder.settled) kept = this.take(this.encoder.advance(frame)) && kept;
    return kept;
  }

  /** Time passes until everything heard is committed. */
  settle(): void {
    while (!this.settled) this.advance(this.frame + 1);
  }

  private commit(events: readonly KeyEvent[]): boolean {
    return events.length === 0 || this.take(events.flatMap((event) => this.encoder.push(event)));
  }

  /** Tokens that are certain: those of the plan are in the state already, another one breaks it. */
  private take(tokens: readonly number[]): boolean {
    for (let place = 0; place < tokens.length; place++) {
      if (this.planned.length && this.planned[0].token === tokens[place]) {
        this.planned.shift();
        this.remember(tokens[place]);
        continue;
      }
      const kept = this.planned.length === 0;
      this.forgetPlan();
      this.commitNew(tokens.slice(place));
      return kept;
    }
    return true;
  }

  private commitNew(tokens: readonly number[]): void {
    if (tokens.length <= STEPPED_TOKENS) {
      this.feed(tokens);
      for (const token of tokens) this.remember(token);
    } else {
      this.feedSegments(tokens);
      this.dropAnchors();
    }
  }

  private remember(token: number): void {
    this.noteFrame(this.encoder.frame);
    // Nobody goes back there: the next plan makes a copy of its own.
    if (!this.planned.length && this.history.length > 4 * ANCHOR_TOKENS) this.dropAnchors();
    if (this.anchors.length) this.history.push(token);
  }

  private noteFrame(frame: number): void {
    this.tokenFrames.push(frame);
    if (this.tokenFrames.length > 2 * this.longest) this.tokenFrames = this.tokenFrames.slice(-this.longest);
  }

  private feed(ids: readonly number[]): void {
    for (const id of ids) {
      this.stream.step(id);
      this.mask.advance(id);
    }
  }

  private feedSegments(ids: readonly number[], progress?: (done: number) => void): void {
    hear(this.stream, this.mask, ids, () => this.noteFrame(this.mask.frame), progress);
  }

  /** The present is where the state is; the notes that sound in it belong to `owners`. */
  private goOn(owners: ReadonlyMap<number, number>): void {
    this.dropAnchors();
    this.encoder = new Encoder(this.bundle.table, this.mask.frame);
    this.recorder.resume(this.mask.frame, this.mask.onsets, owners);
  }

  // What is meant to sound

  /**
   * Samples up to so many tokens more, and returns the events that they are, none before `earliest`.
   *
   * opening: nothing of an answer was played yet, and its first note must come by this frame. until: a plan that
   * is beyond this frame is long enough.
   */
  plan(tokens: number, earliest: number, opening: number | null, until: number): KeyEvent[] {
    const events: KeyEvent[] = [];
    const { kinds, values } = this.bundle.table;
    const player = this.held();
    if (!this.planned.length) this.planFrom = this.recorder.frame;
    const from = Math.max(earliest, this.planFrom); // before the present nothing can sound any more
    const most = Math.min(tokens, PLAN_TOKENS - this.planned.length);
    for (let made = 0; made < most && this.mask.frame <= until; made++) {
      const last = this.anchors.at(-1);
      if (!last || this.stream.position - last.position >= ANCHOR_TOKENS) this.keep();
      const firstBy = this.planEvents ? null : opening;
      const allowed = this.masks.allowed(this.mask, player, from, firstBy);
      const rng = this.rng.state();
      const token = sample(this.stream.logits, this.sampling, this.rng, allowed, this.bias);
      this.planned.push({ token, rng });
      this.feed([token]);
      const [kind, value] = [kinds[token], Number(values[token])];
      if (kind === "on") this.pendingPitch = value;
      else if (kind === "velocity") events.push(this.event("on", this.pendingPitch, value));
      else if (kind === "off") events.push(this.event("off", value, 0));
      if (kind === "velocity" || kind === "off") this.planEvents++;
    }
    return events;
  }

  /** The state goes back to what sounded. */
  forgetPlan(): void {
    if (!this.planned.length) return;
    const { position } = this;
    this.clearPlan();
    while ((this.anchors.at(-1) as Anchor).position > position) {
      this.spare.push((this.anchors.pop() as Anchor).stream);
    }
    const anchor = this.anchors.at(-1) as Anchor;
    this.stream.restore(anchor.stream);
    this.mask.become(anchor.mask);
    this.feed(this.committedAfter(anchor));
  }

  private event(kind: "on" | "off", pitch: number, velocity: number): KeyEvent {
    return { frame: this.mask.frame, kind, pitch, velocity };
  }

  private clearPlan(): void {
    this.planned = [];
    this.planEvents = 0;
  }

  /** The tokens committed after an anchor. */
  private committedAfter(anchor: Anchor): number[] {
    return this.history.slice(anchor.position - this.anchors[0].position);
  }

  /** A copy of the state as it is; of the committed ones only the latest is needed, the others' memory is
   * used again. */
  private keep(): void {
    const stream = this.stream.snapshot(this.spare.pop());
    this.anchors.push({ position: this.stream.position, stream, mask: this.mask.copy() });
    const needed = this.anchors.findLastIndex((anchor) => anchor.position <= this.position);
    if (needed > 0) {
      this.history.splice(0, this.anchors[needed].position - this.anchors[0].position);
      this.spare.push(...this.anchors.splice(0, needed).map((anchor) => anchor.stream));
    }
  }

  private dropAnchors(): void {
    this.spare.push(...this.anchors.map((anchor) => anchor.stream));
    this.spare.length = Math.min(this.spare.length, 8);
    this.anchors = [];
    this.history = [];
  }

  private held(): number[] {
    return [...this.recorder.owners()].filter(([, by]) => by === PLAYER).map(([pitch]) => pitch);
  }

  // Going elsewhere

  /** Everything remembered now, as if nothing were planned, with the generator as it was before the plan. */
  moment(): Moment {
    const planned = this.planned;
    if (!planned.length) return this.here(this.rng.state());
    const [stream, mask] = [this.stream.snapshot(), this.mask.copy()];
    const anchor = this.anchors.findLast((one) => one.position <= this.position) as Anchor;
    this.stream.restore(anchor.stream);
    this.mask.become(anchor.mask);
    this.feed(this.committedAfter(anchor));
    const moment = this.here(planned[0].rng);
    this.stream.restore(stream); // the plan stands as it stood
    this.mask.become(mask);
    return moment;
  }

  /** Goes to a moment; the player's notes end there, the others are the model's to end. Throws HostError "state",
   * with nothing changed but the plan, for one of another bundle or graph. */
  restore(moment: Moment): void {
    this.forgetPlan();
    this.stream.restore(moment.stream);
    this.mask.become(moment.mask);
    this.rng = Pcg64.fromState(moment.rng);
    this.tokenFrames = [...moment.frames];
    const player = new Set(moment.player);
    this.goOn(
      new Map([...this.mask.onsets.keys()].map((pitch) => [pitch, player.has(pitch) ? PLAYER : MODEL])),
    );
    if (player.size) {
      this.release(this.frame + 1, PLAYER);
      this.advance(this.frame + 1);
    }
  }

  /** The next tokens, and the logits [V] of the first, all taken back. */
  peek(tokens: number): { ids: number[]; logits: Float32Array } {
    this.forgetPlan();
    const [stream, mask, rng] = [this.stream.snapshot(), this.mask.copy(), this.rng.state()];
    const ids: number[] = [];
    for (let made = 0; made < tokens; made++) {
      ids.push(sample(this.stream.logits, this.sampling, this.rng, this.mask.allowed, this.bias));
      this.feed(ids.slice(-1));
    }
    this.stream.restore(stream);
    this.mask.become(mask);
    this.rng = Pcg64.fromState(rng);
    return { ids, logits: stream.logits };
  }

  /** Another random generator, for what is planned from now on. */
  reseed(seed: number): void {
    this.rng = Pcg64.seeded(seed);
  }

  private here(rng: Moment["rng"]): Moment {
    const sounding = this.mask.onsets;
    return {
      stream: this.stream.snapshot(),
      mask: this.mask.copy(),
      rng,
      player: this.held().filter((pitch) => sounding.has(pitch)),
      frames: this.tokenFrames.slice(-this.longest),
    };
  }
}

/** The recorder's channel: 0 is the model's own, which no pedal of the player's reaches. */
function own(channel: number, by: By): number {
  return by === PLAYER ? channel + 1 : 0;
}
