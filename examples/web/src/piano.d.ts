/** A note that sounds. Times in seconds of the audio context. */
export interface PianoVoice {
  /** As a damper ends it. */
  release(when: number): void;
  /** Silent within 20 ms; a note that is still to begin never does. */
  cut(when: number): void;
}

export interface PianoInstrument {
  readonly context: BaseAudioContext;
  readonly input: GainNode;
  readonly volume: GainNode;
  /** Those that sound or are to begin. */
  readonly voices: ReadonlySet<PianoVoice>;
}

declare global {
  /** Set by piano.js. Velocities 1-127. */
  var Piano: {
    instrument(context: BaseAudioContext): PianoInstrument;
    begin(piano: PianoInstrument, out: AudioNode, pitch: number, velocity: number, start: number): PianoVoice;
    strike(
      piano: PianoInstrument,
      out: AudioNode,
      pitch: number,
      velocity: number,
      start: number,
      end: number,
    ): void;
    /** Ends everything within 20 ms, the room's echo too. */
    silence(piano: PianoInstrument, when: number): void;
  };
}
