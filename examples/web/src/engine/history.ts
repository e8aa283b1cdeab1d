/** What can be taken back: the moments that the worker has marked, as the page knows them; and an answer's ways. */

import type { Sampling } from "../host/sampling";
import type { RollNote, Variation } from "../view";

/** A moment to come back to. */
export interface Mark {
  readonly notes: readonly RollNote[];
}

/** How one way of an answer was asked for, so that it can be asked for again. */
export interface Way {
  readonly name: string;
  readonly seed: number;
  readonly sampling: Sampling;
}

/** The latest answer: from which frame, in which ways so far. Its mark is the latest one. */
export interface Answer {
  readonly frame: number;
  readonly ways: readonly Way[];
  readonly current: string;
}

export class History {
  answer: Answer | null = null;
  private marks: Mark[] = [];
  /** How many of the oldest the worker has let go. */
  private dropped = 0;

  get canUndo(): boolean {
    return this.marks.length > 0;
  }

  get variations(): readonly Variation[] {
    const { answer } = this;
    if (!answer) return [];
    return answer.ways.map(({ name, seed }) => ({ name, seed, current: name === answer.current }));
  }

  /** How many marks there are, counting those that were let go: for `trim`. */
  push(notes: readonly RollNote[]): number {
    this.marks.push({ notes });
    return this.marks.length + this.dropped;
  }

  pop(): Mark | undefined {
    return this.marks.pop();
  }

  latest(): Mark | undefined {
    return this.marks.at(-1);
  }

  /** The worker keeps so many of what `push` said there were. */
  trim(depth: number, kept: number): void {
    const gone = Math.min(depth - kept - this.dropped, this.marks.length);
    if (gone <= 0) return;
    this.marks.splice(0, gone);
    this.dropped += gone;
  }

  clear(): void {
    this.marks = [];
    this.dropped = 0;
    this.answer = null;
  }
}

/** A, B, … Z, AA, AB … */
export function nameOf(index: number): string {
  const letter = String.fromCharCode(65 + (index % 26));
  return index < 26 ? letter : nameOf(Math.floor(index / 26) - 1) + letter;
}
