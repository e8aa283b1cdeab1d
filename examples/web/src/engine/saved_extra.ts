/** What this page adds to a saved state: the roll and how the model was sampled. Files bring it back, so it is read
 * as carefully as any file; a state that another program saved has none of it. */

import { checkSampling, type Sampling } from "../host/sampling";
import { MODEL, PLAYER } from "../protocol";
import type { RollNote, Settings } from "../view";

type Numbers = readonly (number | null)[];

/** As JSON. A note: start, end (null while it sounds), pitch, velocity, by. */
export function extraOf(notes: readonly RollNote[], { sampling, seed }: Settings): unknown {
  return {
    notes: notes.map(({ start, end, pitch, velocity, by }) => [start, end, pitch, velocity, by]),
    settings: { sampling, seed },
  };
}

/** The roll of a saved state; empty where it has none that can be shown. */
export function notesOf(extra: unknown): readonly RollNote[] {
  const { notes } = (extra ?? {}) as { notes?: unknown };
  if (!Array.isArray(notes) || !notes.every(isNote)) return [];
  return notes.map(([start, end, pitch, velocity, by]) => ({
    start: start as number,
    end: end as number | null,
    pitch: pitch as number,
    velocity: velocity as number,
    by: by === MODEL ? MODEL : PLAYER,
  }));
}

/** Its settings, as far as they make sense. */
export function settingsOf(extra: unknown): Partial<Settings> {
  const { settings } = (extra ?? {}) as { settings?: Partial<Settings> | null };
  const found: { -readonly [K in keyof Settings]?: Settings[K] } = {};
  const { temperature, topK, topP, minP } = (settings?.sampling ?? {}) as Sampling;
  const sampling = { temperature, topK, topP, minP };
  try {
    checkSampling(sampling);
    found.sampling = sampling;
  } catch {} // the page keeps its own
  if (Number.isSafeInteger(settings?.seed) && (settings?.seed as number) >= 0) found.seed = settings?.seed;
  return found;
}

function isNote(note: unknown): note is Numbers {
  if (!Array.isArray(note) || note.length !== 5) return false;
  const [start, end, pitch, velocity] = note as Numbers;
  const whole = (value: number | null, least: number, most: number) =>
    Number.isInteger(value) && (value as number) >= least && (value as number) <= most;
  return (
    whole(start, 0, 2 ** 40) &&
    (end === null || whole(end, (start as number) + 1, 2 ** 40)) &&
    whole(pitch, 0, 127) &&
    whole(velocity, 1, 127)
  );
}
