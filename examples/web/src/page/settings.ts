import type { Session, View } from "../view";
import { button, element, input, write } from "./elements";

/** Temperature, top-p, seed, volume and the built-in sound. */
export class SettingsPanel {
  private readonly seed = input("seed");
  private readonly sound = input("sound");
  private readonly sliders: readonly Slider[];

  constructor(session: Session) {
    const sampling = (part: Partial<View["settings"]["sampling"]>) =>
      session.set({ sampling: { ...session.view().settings.sampling, ...part } });
    this.sliders = [
      {
        id: "temperature",
        get: (view) => view.settings.sampling.temperature,
        set: (temperature) => sampling({ temperature }),
        text: (value) => value.toFixed(2),
      },
      {
        id: "top-p",
        get: (view) => view.settings.sampling.topP,
        set: (topP) => sampling({ topP }),
        text: (value) => value.toFixed(2),
      },
      {
        id: "volume",
        get: (view) => view.settings.volume,
        set: (volume) => session.set({ volume }),
        text: (value) => `${Math.round(100 * value)} %`,
      },
    ];
    for (const { id, set } of this.sliders) {
      input(id).addEventListener("input", () => set(input(id).valueAsNumber));
    }
    this.seed.addEventListener("change", () => {
      if (this.seed.checkValidity() && this.seed.value !== "") session.set({ seed: this.seed.valueAsNumber });
      this.show(session.view());
    });
    button("new-seed").addEventListener("click", () => session.set({ seed: anySeed() }));
    this.sound.addEventListener("change", () =>
      session.set({ sound: this.sound.checked ? "built-in" : "none" }),
    );
  }

  show(view: View): void {
    for (const { id, get, text } of this.sliders) {
      const slider = input(id);
      const value = get(view);
      if (slider.valueAsNumber !== value) slider.value = String(value);
      const shown = slider.nextElementSibling as HTMLOutputElement;
      write(shown, text(value));
      slider.setAttribute("aria-valuetext", text(value));
    }
    this.sound.checked = view.settings.sound === "built-in";
    if (document.activeElement !== this.seed) this.seed.value = String(view.settings.seed);
    element("volume", HTMLInputElement).disabled = view.settings.sound === "none";
  }
}

interface Slider {
  readonly id: string;
  readonly get: (view: View) => number;
  readonly set: (value: number) => void;
  readonly text: (value: number) => string;
}

/** Short enough to be told to somebody. */
const anySeed = (): number => crypto.getRandomValues(new Uint32Array(1))[0] % 1_000_000;
