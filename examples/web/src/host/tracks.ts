/** Who played a note: the recorder's tracks, so that a release belongs to whoever struck the note. */
export const PLAYER = 0;
export const MODEL = 1;
export type By = typeof PLAYER | typeof MODEL;
