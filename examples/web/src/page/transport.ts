import type { Session, View } from "../view";
import { button, element, input, made, write } from "./elements";
import type { Notices } from "./notices";

const plays = (view: View): boolean => view.phase === "answering" || view.phase === "thinking";

/** Continue, stop, undo, variations: what an instrument's player needs at hand. */
export class Transport {
  private readonly goOnButton = button("continue");
  private readonly stopButton = button("stop");
  private readonly undoButton = button("undo");
  private readonly varyButton = button("vary");
  private readonly takes = element("takes", HTMLFieldSetElement);
  private readonly pause = input("pause");
  private readonly seconds = input("pause-seconds");

  constructor(
    private readonly session: Session,
    private readonly notices: Notices,
  ) {
    this.goOnButton.addEventListener("click", () => this.goOn());
    this.stopButton.addEventListener("click", () => this.stop());
    this.undoButton.addEventListener("click", () => this.undo());
    this.varyButton.addEventListener("click", () => this.vary());
    button("begin").addEventListener("click", () => void notices.attempt(session.begin()));
    this.pause.addEventListener("change", () => this.answerByItself());
    this.seconds.addEventListener("change", () => this.answerByItself());
    // Space means "continue" again after a click of the mouse, and not what was clicked.
    document.addEventListener("click", (event) => {
      const clicked = (event.target as Element).closest<HTMLElement>("button, summary, [type=checkbox]");
      if (event.detail > 0 && !clicked?.closest("#opener")) clicked?.blur();
    });
  }

  goOn(): void {
    const view = this.session.view();
    if (view.opened && view.phase === "listening") void this.notices.attempt(this.session.answer());
  }

  stop(): void {
    if (this.session.view().opened) void this.notices.attempt(this.session.stop());
  }

  undo(): void {
    if (this.session.view().canUndo) void this.notices.attempt(this.session.undo());
  }

  vary(name?: string): void {
    if (this.session.view().variations.length > 0) void this.notices.attempt(this.session.vary(name));
  }

  show(view: View): void {
    write(element("state", HTMLParagraphElement), stateText(view));
    const focused = document.activeElement;
    this.goOnButton.disabled = view.phase !== "listening";
    this.stopButton.disabled = !plays(view) && view.sounding.size === 0;
    this.undoButton.disabled = !view.canUndo || view.phase === "opening";
    this.varyButton.disabled = view.variations.length === 0 || view.phase === "opening";
    button("begin").disabled = !view.opened || view.phase === "opening";
    this.showTakes(view);
    this.showPause(view);
    keepFocus(focused, plays(view) ? this.stopButton : this.goOnButton);
  }

  private answerByItself(): void {
    const seconds = Math.min(10, Math.max(0.2, this.seconds.valueAsNumber || 1.5));
    this.session.set({ answerAfterS: this.pause.checked ? seconds : null });
  }

  private showPause({ settings }: View): void {
    this.pause.checked = settings.answerAfterS !== null;
    if (settings.answerAfterS !== null && document.activeElement !== this.seconds) {
      this.seconds.value = String(settings.answerAfterS);
    }
    this.seconds.disabled = settings.answerAfterS === null;
  }

  /** The row A, B, C …: built again only where it changed, so that a focused one keeps the focus. */
  private showTakes({ variations }: View): void {
    const names = variations.map(({ name }) => name).join();
    if (this.takes.dataset.names !== names) {
      this.takes.dataset.names = names;
      this.takes.replaceChildren(
        ...variations.map(({ name, seed }) => {
          const take = made("button", name, { type: "button", title: `seed ${seed}` });
          take.addEventListener("click", () => this.vary(name));
          return take;
        }),
      );
    }
    [...this.takes.children].forEach((take, index) => {
      const { name, current } = variations[index];
      take.setAttribute("aria-pressed", String(current));
      take.setAttribute("aria-label", `Variation ${name}${current ? ", this one" : ""}`);
    });
    this.takes.hidden = variations.length === 0;
  }
}

function stateText(view: View): string {
  switch (view.phase) {
    case "empty":
      return "No bundle is open";
    case "opening":
      return view.progress?.what ?? "Opening";
    case "thinking":
      return "The model is about to play";
    case "answering":
      return "The model plays";
    case "listening":
      return view.notes.length > 0 ? "Listening" : "Listening: play, or drop a MIDI file";
  }
}

/** A button that is disabled, or gone, under the keyboard's focus hands it on. */
function keepFocus(focused: Element | null, next: HTMLButtonElement): void {
  const lost = focused instanceof HTMLButtonElement && (focused.disabled || !focused.isConnected);
  if (lost && !next.disabled) next.focus();
}
