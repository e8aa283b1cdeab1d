/* A piano-like sound from oscillators. Everything takes its audio context, so that the same code plays live and
   renders offline. A classic script: it sets `Piano`, in a page that imports it as in one that inlines it. */
globalThis.Piano = (() => {
  const A4 = 69;
  /* So many notes sound at once; a new one silences the one that is missed least. */
  const MOST_VOICES = 48;
  /* Time constant of a note that is cut off, seconds: too short to ring, too long to click. */
  const CUT_TAU = 0.002;
  const CUT_S = 0.015;
  const ROOM_S = 1.4;

  const between = (low, value, high) => Math.min(high, Math.max(low, value));

  /* Strengths of the partials of a string struck at an eighth of its length: the eighth partial is missing. High
     strings are stiffer and have fewer. One wave for each octave. */
  function waveOf(piano, pitch) {
    const octave = between(1, Math.floor(pitch / 12), 9);
    if (!piano.waves[octave]) {
      const count = between(6, 44 - 4 * octave, 32);
      const real = new Float32Array(count);
      const imaginary = new Float32Array(count);
      for (let n = 1; n < count; n++) {
        imaginary[n] = (0.04 + Math.abs(Math.sin((Math.PI * n) / 8))) / n ** (1.05 + 0.14 * octave);
      }
      piano.waves[octave] = piano.context.createPeriodicWave(real, imaginary);
    }
    return piano.waves[octave];
  }

  /* Numbers between -1 and 1 that look like chance and are the same every time. */
  function noise() {
    let seed = 1;
    return () => {
      seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
      return seed / 2 ** 31 - 1;
    };
  }

  /* A felt hammer on the string: a few milliseconds of dull noise. */
  function hammerOf(context) {
    const buffer = context.createBuffer(1, Math.round(0.05 * context.sampleRate), context.sampleRate);
    const data = buffer.getChannelData(0);
    const next = noise();
    for (let i = 0; i < data.length; i++) data[i] = next() * Math.exp((-9 * i) / data.length);
    return buffer;
  }

  /* Noise that dies away, its high end first: the answer of a small room. */
  function echoOf(context) {
    const length = Math.round(ROOM_S * context.sampleRate);
    const buffer = context.createBuffer(2, length, context.sampleRate);
    const next = noise();
    const first = Math.round(0.008 * context.sampleRate);
    for (let channel = 0; channel < 2; channel++) {
      const data = buffer.getChannelData(channel);
      let smooth = 0;
      for (let i = first; i < length; i++) {
        smooth += (0.5 - 0.38 * (i / length)) * (next() - smooth);
        data[i] = smooth * Math.exp((-6.9 * i) / length);
      }
    }
    return buffer;
  }

  function openRoom(piano) {
    const { context } = piano;
    const room = { hall: context.createConvolver(), wet: context.createGain() };
    room.hall.buffer = piano.echo;
    room.wet.gain.value = 0.22;
    piano.input.connect(room.hall).connect(room.wet).connect(piano.limit);
    piano.room = room;
  }

  /* What is loud is held back by a compressor; what still comes too high bends, and never breaks: the curve is
     straight up to 0.6, reaches 1 nowhere, and takes what is twice too much. */
  function softClip(context) {
    const curve = new Float32Array(4097);
    for (let i = 0; i < curve.length; i++) {
      const x = (4 * i) / (curve.length - 1) - 2;
      const over = Math.max(0, Math.abs(x) - 0.6);
      curve[i] = over ? Math.sign(x) * (0.6 + 0.36 * Math.tanh(over / 0.36)) : x;
    }
    const half = context.createGain();
    const shaper = context.createWaveShaper();
    half.gain.value = 0.5;
    shaper.curve = curve;
    half.connect(shaper);
    return { first: half, last: shaper };
  }

  /* What notes are played into (`input`): dry and through the room, never too loud, then `volume`. */
  function instrument(context) {
    const limit = context.createDynamicsCompressor();
    const clip = softClip(context);
    const piano = {
      context,
      limit,
      input: context.createGain(),
      gate: context.createGain(),
      volume: context.createGain(),
      waves: [],
      hammer: hammerOf(context),
      echo: echoOf(context),
      voices: new Set(),
      room: null,
    };
    piano.input.gain.value = 0.36;
    limit.threshold.value = -16;
    limit.knee.value = 14;
    limit.ratio.value = 5;
    limit.attack.value = 0.004;
    limit.release.value = 0.18;
    piano.input.connect(limit);
    openRoom(piano);
    limit.connect(clip.first);
    clip.last.connect(piano.gate).connect(piano.volume).connect(context.destination);
    return piano;
  }

  /* How a note of this pitch (MIDI) and velocity (1-127) sounds. Times in seconds. */
  function character(pitch, velocity) {
    const force = velocity / 127;
    const tau = between(0.16, 0.95 * 2 ** ((60 - pitch) / 20), 3.2);
    const loudness = between(0.6, 2 ** ((60 - pitch) / 48), 1.25);
    return {
      force,
      tau,
      hertz: 440 * 2 ** ((pitch - A4) / 12),
      peak: 0.42 * force ** 1.5 * loudness,
      rise: 0.002 + 0.009 * (1 - force),
      damping: pitch > 88 ? 0.3 : between(0.045, 0.075 * 2 ** ((60 - pitch) / 40), 0.13),
      // The two strings of a note are never quite in tune, and no two notes in the same way.
      detune: 0.9 + 0.5 * Math.abs(Math.sin(pitch * 12.9898)),
    };
  }

  /* Quick at first, then slow: the two ways in which a string swings. */
  function envelope(context, sound, start) {
    const level = context.createGain();
    const top = start + sound.rise;
    level.gain.setValueAtTime(0, start);
    level.gain.linearRampToValueAtTime(sound.peak, top);
    level.gain.setTargetAtTime(0.5 * sound.peak, top, 0.18 * sound.tau);
    level.gain.setTargetAtTime(0, top + 0.5 * sound.tau, 1.1 * sound.tau);
    return level;
  }

  /* Loud notes are brighter, and every note darkens while it rings. */
  function brightness(context, sound, start) {
    const felt = context.createBiquadFilter();
    felt.type = "lowpass";
    felt.Q.value = 0.2;
    felt.frequency.setValueAtTime(
      Math.min(15000, sound.hertz * (1.6 + 10 * sound.force ** 1.4) + 350),
      start,
    );
    felt.frequency.setTargetAtTime(
      Math.min(9000, (1.7 + 1.7 * sound.force) * sound.hertz + 380),
      start + sound.rise,
      0.45 * sound.tau,
    );
    return felt;
  }

  function strings(piano, pitch, sound, start, stop, into) {
    return [-sound.detune, sound.detune].map((cents) => {
      const string = piano.context.createOscillator();
      string.setPeriodicWave(waveOf(piano, pitch));
      string.frequency.value = sound.hertz;
      string.detune.value = cents;
      string.connect(into);
      string.start(start);
      string.stop(stop);
      return string;
    });
  }

  function knock(piano, sound, start, into) {
    const { context } = piano;
    const hammer = context.createBufferSource();
    const dull = context.createBiquadFilter();
    const level = context.createGain();
    hammer.buffer = piano.hammer;
    dull.type = "lowpass";
    dull.frequency.value = between(300, 1.5 * sound.hertz, 2600);
    level.gain.value = 0.22 * sound.peak * sound.force;
    hammer.connect(dull).connect(level).connect(into);
    hammer.start(start);
    return hammer;
  }

  /* The voice that is missed least: one whose key is up, else the oldest. */
  function makeRoom(piano, start) {
    while (piano.voices.size >= MOST_VOICES) {
      const voices = [...piano.voices];
      const victim = voices.find((voice) => voice.released) ?? voices[0];
      victim.cut(start);
      piano.voices.delete(victim);
    }
  }

  /* One note into `out`, from `start` (seconds of the context) until it is let go; velocity 1-127. What it returns
     ends it: `release(when)` as a damper does, `cut(when)` within 20 ms, whatever was said before. */
  function begin(piano, out, pitch, velocity, start) {
    const { context } = piano;
    const sound = character(pitch, velocity);
    makeRoom(piano, start);
    const level = envelope(context, sound, start);
    const felt = brightness(context, sound, start);
    const damper = context.createGain();
    const side = context.createStereoPanner();
    damper.gain.setValueAtTime(1, start);
    side.pan.value = between(-0.5, (pitch - 62) / 70, 0.5);
    level.connect(felt).connect(damper).connect(side).connect(out);
    const sources = strings(piano, pitch, sound, start, start + 8 * sound.tau + 0.1, level);
    sources.push(knock(piano, sound, start, damper));

    const end = (when, tau, after) => {
      damper.gain.setTargetAtTime(0, when, tau);
      for (const source of sources) source.stop(when + after);
    };
    const voice = {
      released: false,
      release(when) {
        if (voice.released) return;
        voice.released = true;
        end(Math.max(when, start + sound.rise + 0.02), sound.damping, 7 * sound.damping);
      },
      cut(when) {
        voice.released = true;
        if (when <= start) end(when, CUT_TAU, 0);
        else end(when, CUT_TAU, CUT_S);
      },
    };
    sources[0].onended = () => {
      piano.voices.delete(voice);
      side.disconnect();
    };
    piano.voices.add(voice);
    return voice;
  }

  /* One note whose end is known. */
  function strike(piano, out, pitch, velocity, start, end) {
    begin(piano, out, pitch, velocity, start).release(end);
  }

  /* Ends everything within 20 ms. The compressor delays what it holds back, so that the gate behind it shuts, too;
     and the room's noise would go on answering: it is left, and another one opened, which takes some milliseconds
     of work, when all is quiet. */
  function silence(piano, when) {
    piano.gate.gain.setTargetAtTime(0, when, CUT_TAU);
    piano.gate.gain.setTargetAtTime(1, when + 0.03, CUT_TAU);
    for (const voice of piano.voices) voice.cut(when);
    const { room } = piano;
    if (!room) return;
    piano.room = null;
    room.wet.gain.setTargetAtTime(0, when, CUT_TAU);
    setTimeout(() => {
      piano.input.disconnect(room.hall);
      room.wet.disconnect();
      openRoom(piano);
    }, 60);
  }

  return { instrument, begin, strike, silence };
})();
