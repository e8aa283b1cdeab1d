/** The player's hands: what is held down, and how it sounds. What is remembered of it is the roll's. */

import { PEDAL_DOWN } from "../host/controllers";
import type { Voice } from "./playback";

/** Something that the player did. `value`: velocity of an on, position 0-127 of a pedal, else 0. */
export interface Act {
  readonly kind: "on" | "off" | "pedal" | "all_off";
  readonly channel: number;
  readonly pitch: number;
  readonly value: number;
}

type Begin = (pitch: number, velocity: number) => Voice;

/** Keys and pedals by channel, which sound until they are let go. Moments in seconds of the Timebase. */
export class Player {
  /** When a key last moved. */
  lastKey = 0;
  private down = new Set<number>();
  private voices = new Map<number, Voice>();
  private pedals = new Set<number>();

  constructor(private readonly begin: Begin) {}

  /** How many keys are down. */
  get held(): number {
    return this.down.size;
  }

  act({ kind, channel, pitch, value }: Act, at: number): void {
    const key = 128 * channel + pitch;
    if (kind !== "pedal") this.lastKey = at;
    if (kind === "pedal") this.pedal(channel, value, at);
    else if (kind === "all_off") this.endWhere((one) => one >> 7 === channel, at);
    else if (kind === "off") this.lift(key, at);
    else {
      this.damp(key, at); // struck again in the pedal
      this.down.add(key);
      this.voices.set(key, this.begin(pitch, value));
    }
  }

  /** Lets everything go: the hands are gone. */
  end(at: number): void {
    this.pedals.clear();
    this.endWhere(() => true, at);
  }

  private lift(key: number, at: number): void {
    if (!this.down.delete(key) || this.pedals.has(key >> 7)) return;
    this.damp(key, at);
  }

  private pedal(channel: number, value: number, at: number): void {
    if (value >= PEDAL_DOWN) this.pedals.add(channel);
    else if (this.pedals.delete(channel)) {
      for (const key of [...this.voices.keys()]) {
        if (key >> 7 === channel && !this.down.has(key)) this.damp(key, at);
      }
    }
  }

  private endWhere(which: (key: number) => boolean, at: number): void {
    for (const key of [...this.voices.keys()].filter(which)) {
      this.down.delete(key);
      this.damp(key, at);
    }
  }

  private damp(key: number, at: number): void {
    this.voices.get(key)?.release(at);
    this.voices.delete(key);
  }
}
