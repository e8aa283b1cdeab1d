import { MODEL } from "../protocol";
import type { View } from "../view";
import { button, element, made } from "./elements";
import type { Hands } from "./hands";
import { isBlack, pitchName } from "./wording";

/** Narrowest white key before octaves are left out, in CSS pixels: two octaves on a phone. */
const NARROWEST = 22;
const MOST_OCTAVES = 7;
/** Of a key that is played without a pointer. */
const VELOCITY = 80;
const [SOFTEST, LOUDEST] = [36, 118];
/** The finger on the key that has the focus. */
const FOCUSED = "focused key";

/** Keys on the screen: a piano's, from a C to a C. The nearer to the front a key is struck, the louder. */
export class Keys {
  private readonly board = element("keys", HTMLFieldSetElement);
  private readonly keys = new Map<number, HTMLButtonElement>();
  private lit = new Map<number, string>();
  private range: readonly [number, number] = [21, 108];
  private octaves = 0;
  private lowest = 48;

  /** What the computer's keys are called that play from `first` on. */
  private letters: { readonly first: number; readonly names: readonly string[] } = { first: 60, names: [] };

  constructor(private readonly hands: Hands) {
    new ResizeObserver(() => this.fit()).observe(this.board);
    button("lower").addEventListener("click", () => this.shift(-1));
    button("higher").addEventListener("click", () => this.shift(1));
    this.pointers();
    this.focusedKeys();
    this.fit();
  }

  /** Writes the computer's keys on the piano's, and shows that part of it. */
  name(first: number, names: readonly string[]): void {
    this.letters = { first, names };
    const beyond = first + 12 - (this.lowest + 12 * this.octaves);
    if (first < this.lowest) this.shift((first - this.lowest) / 12);
    else if (beyond > 0) this.shift(beyond / 12);
    for (const [pitch, key] of this.keys) key.dataset.letter = names[pitch - first] ?? "";
  }

  private shift(octaves: number): void {
    const lowest = this.clamped(this.lowest + 12 * octaves);
    if (lowest === this.lowest) return;
    this.lowest = lowest;
    this.build();
  }

  show(view: View): void {
    if (view.opened && view.opened.pitchRange.join() !== this.range.join()) {
      this.range = view.opened.pitchRange;
      this.fit(true);
    }
    this.light(view.sounding);
  }

  /** Lights what sounds, in the colour of who plays it. Cheap enough for every frame. */
  light(sounding: View["sounding"]): void {
    for (const [pitch] of this.lit) if (!sounding.has(pitch)) this.paint(pitch, null);
    for (const [pitch, by] of sounding) this.paint(pitch, by === MODEL ? "model" : "player");
  }

  private paint(pitch: number, by: string | null): void {
    if ((this.lit.get(pitch) ?? null) === by) return;
    const key = this.keys.get(pitch);
    if (by === null) {
      this.lit.delete(pitch);
      if (key) delete key.dataset.by;
    } else {
      this.lit.set(pitch, by);
      if (key) key.dataset.by = by;
    }
  }

  /** As many octaves as there is room for, around middle C. */
  private fit(anew = false): void {
    const room = Math.floor(this.board.clientWidth / (7 * NARROWEST));
    const known = Math.ceil((this.range[1] - this.range[0]) / 12);
    const octaves = Math.max(2, Math.min(room, known, MOST_OCTAVES));
    if (octaves === this.octaves && !anew) return;
    const middle = this.octaves === 0 ? 60 : this.lowest + 12 * Math.floor(this.octaves / 2);
    this.octaves = octaves;
    this.lowest = this.clamped(middle - 12 * Math.floor(octaves / 2));
    this.build();
  }

  /** The Cs that leave no more than part of an octave unknown at either end. */
  private clamped(lowest: number): number {
    const least = 12 * Math.floor(this.range[0] / 12);
    const most = Math.max(least, 12 * Math.ceil((this.range[1] - 12 * this.octaves) / 12));
    return Math.min(Math.max(lowest, least), most);
  }

  private build(): void {
    this.hands.liftAll();
    const focused = this.board.contains(document.activeElement);
    this.keys.clear();
    this.lit = new Map();
    const highest = Math.min(127, this.lowest + 12 * this.octaves);
    const whites = 7 * this.octaves + 1;
    let white = 0;
    for (let pitch = this.lowest; pitch <= highest; pitch++) {
      const key = made("button", "", { type: "button", tabindex: "-1", "aria-label": pitchName(pitch) });
      key.dataset.pitch = String(pitch);
      key.className = isBlack(pitch) ? "black" : "white";
      key.style.left = `${(100 * (isBlack(pitch) ? white - 0.31 : white)) / whites}%`;
      key.style.width = `${(100 * (isBlack(pitch) ? 0.62 : 1)) / whites}%`;
      key.dataset.letter = this.letters.names[pitch - this.letters.first] ?? "";
      key.disabled = pitch < this.range[0] || pitch > this.range[1];
      if (pitch % 12 === 0) key.append(made("span", pitchName(pitch), { "aria-hidden": "true" }));
      if (!isBlack(pitch)) white++;
      this.keys.set(pitch, key);
    }
    this.board.replaceChildren(...this.keys.values());
    const entry = this.keys.get(this.lowest + 12 * Math.floor(this.octaves / 2));
    if (entry) entry.tabIndex = 0;
    if (focused) entry?.focus();
    button("lower").disabled = this.clamped(this.lowest - 12) === this.lowest;
    button("higher").disabled = this.clamped(this.lowest + 12) === this.lowest;
  }

  private pointers(): void {
    const press = (event: PointerEvent) => {
      const key = document.elementFromPoint(event.clientX, event.clientY);
      if (!(key instanceof HTMLButtonElement) || !this.board.contains(key) || key.disabled) return;
      const box = key.getBoundingClientRect();
      const depth = (event.clientY - box.top) / box.height;
      const velocity = SOFTEST + (LOUDEST - SOFTEST) * depth;
      this.hands.press(`pointer ${event.pointerId}`, Number(key.dataset.pitch), velocity);
    };
    const lift = (event: PointerEvent) => this.hands.lift(`pointer ${event.pointerId}`);
    this.board.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      event.preventDefault(); // no focus, no selection: the hand plays on
      this.board.setPointerCapture(event.pointerId);
      press(event);
    });
    this.board.addEventListener("pointermove", (event) => {
      if (event.buttons & 1 && this.board.hasPointerCapture(event.pointerId)) press(event);
    });
    this.board.addEventListener("pointerup", lift);
    this.board.addEventListener("pointercancel", lift);
    this.board.addEventListener("lostpointercapture", lift);
    this.board.addEventListener("contextmenu", (event) => event.preventDefault());
  }

  /** Arrow keys move from key to key, Enter and Space play while they are held. */
  private focusedKeys(): void {
    const pitchOf = (event: Event) => Number((event.target as HTMLElement).dataset.pitch);
    this.board.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1, ArrowUp: 12, ArrowDown: -12 }[event.key];
      if (step !== undefined && this.focus(pitchOf(event), step)) event.preventDefault();
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      if (!event.repeat) this.hands.press(FOCUSED, pitchOf(event), event.shiftKey ? LOUDEST : VELOCITY);
    });
    this.board.addEventListener("keyup", (event) => {
      if (event.key === "Enter" || event.key === " ") this.hands.lift(FOCUSED);
    });
    this.board.addEventListener("focusout", () => this.hands.lift(FOCUSED));
  }

  private focus(from: number, step: number): boolean {
    const next = this.keys.get(from + step);
    if (!next || next.disabled) return false;
    for (const key of this.keys.values()) key.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
    return true;
  }
}
