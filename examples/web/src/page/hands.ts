import type { Session } from "../view";

/**
 * The player's hands on this page: each finger (a pointer, a key of the computer) holds one pitch. A pitch that two
 * fingers hold ends with the second. Velocities 1-127.
 */
export class Hands {
  private readonly held = new Map<string, number>();

  constructor(private readonly session: Session) {}

  press(finger: string, pitch: number, velocity: number): void {
    if (this.held.get(finger) === pitch) return;
    this.lift(finger);
    this.held.set(finger, pitch);
    this.session.noteOn(pitch, Math.min(127, Math.max(1, Math.round(velocity))));
  }

  lift(finger: string): void {
    const pitch = this.held.get(finger);
    if (pitch === undefined) return;
    this.held.delete(finger);
    if (![...this.held.values()].includes(pitch)) this.session.noteOff(pitch);
  }

  liftAll(): void {
    for (const finger of [...this.held.keys()]) this.lift(finger);
  }

  holds(finger: string): boolean {
    return this.held.has(finger);
  }
}
