/** MIDI controllers that say something of keys and pedals (MIDI 1.0, control change messages). */
export const SUSTAIN = 64;
export const ALL_SOUND_OFF = 120;
export const RESET = 121;
export const ALL_NOTES_OFF = 123;

/** A sustain pedal at this position or beyond is down. */
export const PEDAL_DOWN = 64;
