import type { By } from "../protocol";

type Rgb = readonly [number, number, number];

/** Shades of a note from the softest to the loudest. */
const SHADES = 8;
const SOFTEST = 0.4;

/**
 * The page's colours for the canvas, which knows no custom properties. Blue, vermilion and green are Okabe and Ito's
 * (2008), told apart by everybody: https://jfly.uni-koeln.de/color
 */
export class Palette {
  readonly paper: string;
  readonly ink: string;
  readonly soft: string;
  readonly line: string;
  readonly lane: string;
  readonly memory: string;
  readonly whiteKey: string;
  readonly blackKey: string;
  readonly keyText: string;
  /** By who plays. */
  readonly own: readonly [string, string];
  private readonly shades: readonly (readonly string[])[];
  private readonly rgb: Readonly<Record<"paper" | "memory", Rgb>>;

  constructor(place: Element) {
    const probe = document.createElement("span");
    place.append(probe);
    const colour = (name: string): Rgb => {
      probe.style.color = `var(--${name})`;
      return (getComputedStyle(probe).color.match(/[\d.]+/g) ?? ["0", "0", "0"]).map(Number) as never;
    };
    const names = [
      "paper",
      "ink",
      "soft",
      "line",
      "lane",
      "green",
      "blue",
      "orange",
      "key",
      "key-black",
      "key-text",
    ];
    const [paper, ink, soft, line, lane, memory, player, model, key, keyBlack, keyText] = names.map(colour);
    probe.remove();
    this.rgb = { paper, memory };
    [this.paper, this.ink, this.soft, this.line, this.lane] = [paper, ink, soft, line, lane].map(css);
    [this.whiteKey, this.blackKey, this.keyText, this.memory] = [key, keyBlack, keyText, memory].map(css);
    this.own = [css(player), css(model)];
    this.shades = [player, model].map((own) =>
      Array.from({ length: SHADES }, (_, step) =>
        css(mixed(paper, own, SOFTEST + ((1 - SOFTEST) * step) / (SHADES - 1))),
      ),
    );
  }

  /** The louder, the further from the paper. velocity 1-127. */
  shade(by: By, velocity: number): string {
    return this.shades[by][Math.min(SHADES - 1, Math.floor((velocity * SHADES) / 128))];
  }

  /** The ground of what so many layer groups remember. */
  remembered(share: number): string {
    return css(mixed(this.rgb.paper, this.rgb.memory, share));
  }
}

const mixed = (from: Rgb, to: Rgb, share: number): Rgb =>
  [0, 1, 2].map((i) => from[i] + (to[i] - from[i]) * share) as never;

const css = (rgb: Rgb): string => `rgb(${rgb.map((value) => Math.round(value)).join(" ")})`;
