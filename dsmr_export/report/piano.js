"use strict";
/* A piano-like sound from oscillators. Everything takes its audio context, so that the same code plays live and
   renders offline. */
const Piano = (() => {
  const A4 = 69;

  /* Strengths of the partials of a string struck at an eighth of its length: the eighth partial is missing. */
  function partials(context) {
    const real = new Float32Array(20), imaginary = new Float32Array(20);
    for (let n = 1; n < 20; n++) imaginary[n] = Math.abs(Math.sin(Math.PI * n / 8)) / n ** 1.7;
    return context.createPeriodicWave(real, imaginary);
  }

  /* Noise that dies away: the answer of a small room. The same noise every time. */
  function room(context) {
    const seconds = 1.5, length = Math.round(seconds * context.sampleRate);
    const buffer = context.createBuffer(2, length, context.sampleRate);
    let seed = 1;
    for (let channel = 0; channel < 2; channel++) {
      const data = buffer.getChannelData(channel);
      let smooth = 0;
      for (let i = 0; i < length; i++) {
        seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
        smooth += 0.35 * (seed / 2 ** 31 - 1 - smooth);
        data[i] = smooth * Math.exp(-6.9 * i / length);
      }
    }
    const convolver = context.createConvolver();
    convolver.buffer = buffer;
    return convolver;
  }

  /* What notes are played into: dry and through the room, and never too loud. */
  function instrument(context) {
    const input = context.createGain(), wet = context.createGain(), limit = context.createDynamicsCompressor();
    const hall = room(context);
    input.gain.value = 0.5;
    wet.gain.value = 0.35;
    limit.threshold.value = -16;
    limit.knee.value = 12;
    limit.ratio.value = 6;
    input.connect(limit);
    input.connect(hall).connect(wet).connect(limit);
    limit.connect(context.destination);
    return { context, input, wave: partials(context) };
  }

  /* One note into `out`, from `start` to `end` (seconds of the context); velocity 1 … 127. */
  function strike(piano, out, pitch, velocity, start, end) {
    const { context, wave } = piano;
    const hertz = 440 * 2 ** ((pitch - A4) / 12), force = velocity / 127;
    const tau = Math.min(3.2, Math.max(0.16, 0.95 * 2 ** ((60 - pitch) / 20)));
    const peak = 0.42 * force ** 1.5 * Math.min(1.25, Math.max(0.6, 2 ** ((60 - pitch) / 48)));
    const top = start + 0.003 + 0.009 * (1 - force);
    const release = Math.max(end, top + 0.02);

    const level = context.createGain();
    level.gain.setValueAtTime(0, start);
    level.gain.linearRampToValueAtTime(peak, top);
    level.gain.setTargetAtTime(0.5 * peak, top, 0.18 * tau);
    if (release > top + 0.5 * tau) level.gain.setTargetAtTime(0, top + 0.5 * tau, 1.1 * tau);
    level.gain.setTargetAtTime(0, release, pitch > 88 ? 0.3 : 0.08);

    const felt = context.createBiquadFilter();
    felt.type = "lowpass";
    felt.Q.value = 0.2;
    felt.frequency.setValueAtTime(Math.min(14000, hertz * (3 + 8 * force) + 500), start);
    felt.frequency.setTargetAtTime(Math.min(9000, 2.2 * hertz + 350), top, 0.45 * tau);

    const side = context.createStereoPanner();
    side.pan.value = Math.max(-0.5, Math.min(0.5, (pitch - 62) / 70));

    const stop = release + (pitch > 88 ? 1.8 : 0.6);
    for (const cents of [-1.3, 1.1]) {
      const string = context.createOscillator();
      string.setPeriodicWave(wave);
      string.frequency.value = hertz;
      string.detune.value = cents;
      string.connect(level);
      string.start(start);
      string.stop(stop);
      if (cents > 0) string.onended = () => side.disconnect();
    }
    level.connect(felt).connect(side).connect(out);
  }

  return { instrument, strike };
})();
