/** The built-in sound: one audio context, which the browser lets run after a click or a key. */

import "../piano.js";
import { HostError } from "../host/errors";
import type { PianoInstrument } from "../piano";
import type { Timebase } from "./clock";
import type { Voice } from "./playback";

/** `resume` waits for a click without end where none came. */
const PATIENCE_MS = 1000;

const MUTE: Voice = { release() {}, cut() {} };

export class Sound {
  onChange = () => {};
  onProblem: (text: string) => void = () => {};
  private context: AudioContext | null = null;
  private piano: PianoInstrument | null = null;
  private meter: AnalyserNode | null = null;
  private samples = new Float32Array(0);
  private loudness = 0.8;
  private plays = true;
  private waking = false;

  constructor(private readonly time: Timebase) {}

  /** Whether the browser lets us sound. */
  get on(): boolean {
    return this.context?.state === "running";
  }

  /** Milliseconds from a key to the ear, as the browser says; null before there is sound. */
  get latencyMs(): number | null {
    if (!this.context || !this.on) return null;
    return ((this.context.baseLatency || 0) + (this.context.outputLatency || 0)) * 1000;
  }

  /** Voices that sound, die away or are to begin. */
  get voices(): number {
    return this.piano?.voices.size ?? 0;
  }

  /** Call it in the handler of a click or a key. Rejects with HostError where the browser has no sound. */
  async wake(): Promise<void> {
    const context = this.opened();
    if (this.on) return;
    const patience = new Promise<void>((resolve) => setTimeout(resolve, PATIENCE_MS));
    this.waking = true;
    try {
      await Promise.race([context.resume(), patience]);
    } catch (error) {
      throw new HostError("input", `The browser cannot turn the sound on (${String(error)}).`);
    } finally {
      this.waking = false;
    }
    this.onChange();
  }

  /** Looks at the audio clock; between looks its drift goes unseen. */
  tick(): void {
    if (this.context && this.on) this.time.read(this.context.currentTime);
  }

  /** A note from a moment on; silent where there is no sound. Moments in seconds of the Timebase. */
  begin(pitch: number, velocity: number, at: number): Voice {
    const { piano, context } = this;
    // The key that wakes the sound is heard, too: it waits for it.
    if (!piano || !context || !this.plays || !(this.on || this.waking)) return MUTE;
    const seconds = (when: number) => (this.on ? this.time.audio(when) : context.currentTime);
    const voice = Piano.begin(piano, piano.input, pitch, velocity, seconds(at));
    return {
      release: (when) => voice.release(seconds(when)),
      cut: (when) => voice.cut(seconds(when)),
    };
  }

  /** Everything that sounds is silent within 20 ms, and what is to begin never does. */
  silence(): void {
    if (this.piano && this.context) Piano.silence(this.piano, this.context.currentTime);
  }

  /** volume: 0-1. plays: false where MIDI out is enough. */
  set(volume: number, plays: boolean): void {
    if (this.plays && !plays) this.silence();
    this.plays = plays;
    this.loudness = Math.min(1, Math.max(0, volume));
    if (this.piano && this.context) {
      this.piano.volume.gain.setTargetAtTime(this.gain, this.context.currentTime, 0.02);
    }
  }

  /** The highest amplitude of the last 20 ms, 0-1. */
  level(): number {
    if (!this.meter || !this.on) return 0;
    this.meter.getFloatTimeDomainData(this.samples);
    return this.samples.reduce((most, sample) => Math.max(most, Math.abs(sample)), 0);
  }

  /** Ears hear ratios: half of the way is a quarter of the amplitude. */
  private get gain(): number {
    return this.loudness ** 2;
  }

  private opened(): AudioContext {
    if (this.context && this.context.state !== "closed") return this.context;
    if (typeof AudioContext === "undefined") {
      throw new HostError("input", "This browser has no Web Audio: choose a MIDI output to hear something.");
    }
    try {
      this.context = new AudioContext({ latencyHint: "interactive" });
    } catch (error) {
      throw new HostError("input", `The browser gives no sound (${String(error)}): choose a MIDI output.`);
    }
    this.watch(this.context);
    this.piano = Piano.instrument(this.context);
    this.piano.volume.gain.value = this.gain;
    this.meter = this.context.createAnalyser();
    // 20 ms, as a power of two: 1024 samples up to 51.2 kHz.
    this.meter.fftSize = 2 ** Math.round(Math.log2(0.02 * this.context.sampleRate));
    this.samples = new Float32Array(this.meter.fftSize);
    this.piano.volume.connect(this.meter);
    return this.context;
  }

  private watch(context: AudioContext): void {
    let ran = false;
    context.onstatechange = () => {
      const state = context.state as string;
      this.time.forgetAudio();
      this.tick();
      if (ran && state !== "running") {
        this.onProblem("The browser has stopped the sound: click or press a key to turn it on again.");
      }
      ran = state === "running";
      this.onChange();
    };
    context.addEventListener("error", () => {
      this.onProblem(
        "The sound device does not work: choose another one in the system, then reload the page.",
      );
    });
  }
}
