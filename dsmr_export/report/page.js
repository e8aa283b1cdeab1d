/* The theme's button, and a player under each roll. */
(() => {
  const root = document.documentElement;

  const theme = document.getElementById("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => root.dataset.theme ? root.dataset.theme === "dark" : dark.matches;
  const name = () => {
    theme.textContent = isDark() ? "Light" : "Dark";
    theme.setAttribute("aria-label", `${theme.textContent} theme`);
  };
  theme.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    name();
  });
  dark.addEventListener("change", name);
  theme.hidden = false;
  name();

  const AHEAD = 1.5;  // seconds of notes handed to the audio thread: timers of a hidden page come once a second
  const AFTER = 1.5;  // seconds that the last notes are let ring
  const music = JSON.parse(document.getElementById("notes").textContent);
  const step = music.step_ms / 1000;
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  let piano = null, playing = null, sleeping = 0;

  const clock = seconds => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;

  function open() {
    if (!piano) {
      const context = new AudioContext();
      context.onstatechange = () => { root.dataset.audio = context.state; };
      piano = Piano.instrument(context);
    }
    clearTimeout(sleeping);
    return piano.context.resume();
  }

  function stop() {
    if (!playing) return;
    const { player, out, timer } = playing, context = piano.context;
    playing = null;
    clearInterval(timer);
    out.gain.setTargetAtTime(0, context.currentTime, 0.03);
    setTimeout(() => out.disconnect(), 300);
    sleeping = setTimeout(() => context.suspend(), 1500);
    player.show(false);
  }

  async function play(player, from) {
    stop();
    const mine = playing = { player, out: null, timer: 0 };
    player.show(true);
    await open();
    if (playing !== mine) return;
    const context = piano.context;
    mine.out = context.createGain();
    mine.out.connect(piano.input);
    const begin = context.currentTime + 0.06 - from;
    const notes = player.clip.notes;
    let next = notes.findIndex(note => note[0] * step >= from);
    if (next < 0) next = notes.length;
    const tick = () => {
      const now = context.currentTime;
      for (; next < notes.length && begin + notes[next][0] * step < now + AHEAD; next++) {
        const [start, length, pitch, velocity] = notes[next];
        const at = Math.max(now, begin + start * step);
        Piano.strike(piano, mine.out, pitch, velocity, at, at + length * step);
      }
      if (still.matches) draw();
      if (now - begin > player.seconds + AFTER) {
        stop();
        player.at(0);
      }
    };
    const draw = () => player.at(Math.min(player.seconds, Math.max(0, context.currentTime - begin)));
    const frame = () => {
      if (playing !== mine || still.matches) return;
      draw();
      requestAnimationFrame(frame);
    };
    tick();
    mine.timer = setInterval(tick, still.matches ? 500 : 100);
    frame();
  }

  for (const roll of document.querySelectorAll(".roll")) {
    const clip = music.clips[Number(roll.dataset.clip)];
    const [button, slider, output] = ["button", "input", "output"].map(tag => roll.querySelector(tag));
    const stage = roll.querySelector(".stage"), cursor = roll.querySelector(".cursor");
    const player = {
      clip,
      seconds: clip.frames * step,
      at(seconds) {
        slider.value = seconds;
        cursor.style.left = `${100 * seconds / player.seconds}%`;
        output.textContent = `${clock(seconds)} / ${clock(player.seconds)}`;
        roll.classList.toggle("moved", seconds > 0);
      },
      show(on) {
        roll.dataset.state = on ? "playing" : "stopped";
        button.textContent = on ? "Stop" : "Play";
        button.setAttribute("aria-label", `${button.textContent} ${clip.title}`);
      },
    };
    const isMine = () => playing && playing.player === player;
    const seek = seconds => isMine() ? play(player, seconds) : player.at(seconds);
    button.addEventListener("click", () => {
      if (isMine()) return stop();
      const from = Number(slider.value);
      play(player, from < player.seconds - 0.1 ? from : 0);
    });
    slider.addEventListener("input", () => seek(Number(slider.value)));
    stage.addEventListener("click", event => {
      const box = stage.getBoundingClientRect();
      play(player, player.seconds * (event.clientX - box.left) / box.width);
    });
    if ("AudioContext" in window) button.disabled = slider.disabled = false;
  }
})();
