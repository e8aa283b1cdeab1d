/** Where music time lies in real time, and real time in the audio's. */

import { frameAt } from "../host/performance";

/** How long a reading of the audio's clock counts: longer, and the two clocks have drifted apart. */
const READINGS_S = 2;

/**
 * Seconds that never stop and never jump: the page's monotonic clock, which also stamps MIDI. The audio clock stands
 * still while the browser allows no sound, and is told in blocks; so it is read at every tick, and what is scheduled
 * is carried over by how far ahead of the page's clock it was seen at most in the last two seconds. Hence sound and
 * MIDI agree, and neither drifts.
 */
export class Timebase {
  private readings: { readonly at: number; readonly ahead: number }[] = [];
  private ahead = 0;

  /** milliseconds: those of performance.now(). */
  constructor(private readonly milliseconds: () => number = () => performance.now()) {}

  now(): number {
    return this.milliseconds() / 1000;
  }

  /** Looks at the audio clock. audioSeconds: `currentTime` of a context that runs. */
  read(audioSeconds: number): void {
    const at = this.now();
    this.readings = this.readings.filter((reading) => at - reading.at < READINGS_S);
    this.readings.push({ at, ahead: audioSeconds - at });
    this.ahead = Math.max(...this.readings.map((reading) => reading.ahead));
  }

  /** The audio clock stood still, or is another one: earlier readings say nothing any more. */
  forgetAudio(): void {
    this.readings = [];
  }

  /** A moment in seconds of the audio context that was read last. */
  audio(seconds: number): number {
    return Math.max(0, seconds + this.ahead);
  }
}

/** Frames of the piece against seconds. Time may stand: the present is a frame then, whatever the clock says. */
export class MusicClock {
  private origin = 0;
  private stood: number | null = 0;

  constructor(readonly stepMs: number) {}

  /** The frame of a moment; halves go up. */
  frame(seconds: number): number {
    return this.stood ?? frameAt(seconds - this.origin, this.stepMs);
  }

  /** The same with its fraction, as it is shown. */
  position(seconds: number): number {
    return this.stood ?? (seconds - this.origin) * (1000 / this.stepMs);
  }

  /** The moment of a frame. */
  seconds(frame: number): number {
    return this.origin + (frame * this.stepMs) / 1000;
  }

  /** So many seconds in frames. */
  frames(seconds: number): number {
    return frameAt(seconds, this.stepMs);
  }

  get stands(): boolean {
    return this.stood !== null;
  }

  /** The present is this frame, until `start` or `align`. */
  stand(frame: number): void {
    this.stood = frame;
  }

  /** Time goes on from where it stood. */
  start(seconds: number): void {
    if (this.stood !== null) this.align(seconds, this.stood);
  }

  /** That moment is that frame. */
  align(seconds: number, frame: number): void {
    this.stood = null;
    this.origin = seconds - (frame * this.stepMs) / 1000;
  }

  /** Everything that is to come comes so much later. */
  delay(seconds: number): void {
    this.origin += seconds;
  }
}
