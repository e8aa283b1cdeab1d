import type { Hands } from "./hands";

/** The computer's keyboard as a piano, by the place of the keys and not by what is printed on them. */
const PIANO = [
  "KeyA KeyW KeyS KeyE KeyD KeyF KeyT KeyG KeyY KeyH KeyU KeyJ", // C to B
  "KeyK KeyO KeyL KeyP Semicolon", // C to E
]
  .join(" ")
  .split(" ");
const [VELOCITY, LOUDER] = [80, 112];
const [LOWEST_C, HIGHEST_C] = [24, 96];

/** What keys can ask for. */
export interface Shortcuts {
  goOn(): void;
  stop(): void;
  undo(): void;
  vary(): void;
  octave(by: number): void;
}

/** What is printed on the piano's keys, from C on: where the browser knows the layout, else as in the USA. */
export async function printedLetters(): Promise<string[]> {
  const { keyboard } = navigator as { keyboard?: { getLayoutMap?(): Promise<ReadonlyMap<string, string>> } };
  const layout = await keyboard?.getLayoutMap?.().catch(() => undefined);
  const american = (code: string) => (code === "Semicolon" ? ";" : code.slice(-1));
  return PIANO.map((code) => (layout?.get(code) ?? american(code)).toUpperCase());
}

/** Whether an element wants letters for itself. */
function takesText(target: EventTarget | null): boolean {
  if (!(target instanceof HTMLElement)) return false;
  if (target instanceof HTMLInputElement)
    return !["range", "checkbox", "radio", "button"].includes(target.type);
  return (
    target instanceof HTMLTextAreaElement || target instanceof HTMLSelectElement || target.isContentEditable
  );
}

/** Whether an element does something of its own at Space or Enter. */
const takesSpace = (target: EventTarget | null): boolean =>
  target instanceof Element && target.closest("button, input, select, textarea, summary, a") !== null;

export class ComputerKeys {
  private c = 60;

  constructor(
    private readonly hands: Hands,
    private readonly ask: Shortcuts,
  ) {
    window.addEventListener("keydown", (event) => this.down(event));
    // macOS keeps the ends of other keys to itself while Command is down.
    window.addEventListener("keyup", (event) =>
      event.key === "Meta" ? hands.liftAll() : hands.lift(event.code),
    );
    window.addEventListener("blur", () => this.hands.liftAll());
    document.addEventListener("visibilitychange", () => document.hidden && this.hands.liftAll());
  }

  /** The pitch of the key in the place of A. */
  get first(): number {
    return this.c;
  }

  shift(octaves: number): void {
    this.hands.liftAll();
    this.c = Math.min(HIGHEST_C, Math.max(LOWEST_C, this.c + 12 * octaves));
  }

  private down(event: KeyboardEvent): void {
    if (event.defaultPrevented || event.isComposing) return;
    if (event.key === "Escape") this.asked(event, () => this.ask.stop());
    if (event.key === "Escape" || takesText(event.target)) return;
    if (event.ctrlKey || event.metaKey) {
      if (event.key.toLowerCase() === "z" && !event.shiftKey) this.asked(event, () => this.ask.undo());
      return;
    }
    if (event.altKey) return;
    const place = PIANO.indexOf(event.code);
    if (place >= 0) {
      // A key that is held down repeats; a piano's does not.
      if (!event.repeat) this.hands.press(event.code, this.c + place, event.shiftKey ? LOUDER : VELOCITY);
      event.preventDefault();
    } else this.shortcut(event);
  }

  private shortcut(event: KeyboardEvent): void {
    if (event.code === "KeyZ") this.asked(event, () => this.ask.octave(-1));
    else if (event.code === "KeyX") this.asked(event, () => this.ask.octave(1));
    else if (event.key === "v" || event.key === "V" || event.code === "KeyV") {
      this.asked(event, () => this.ask.vary());
    } else if (event.key === "Backspace") this.asked(event, () => this.ask.undo());
    else if ((event.key === " " || event.key === "Enter") && !takesSpace(event.target)) {
      this.asked(event, () => this.ask.goOn());
    }
  }

  private asked(event: KeyboardEvent, act: () => void): void {
    event.preventDefault();
    if (!event.repeat) act();
  }
}
