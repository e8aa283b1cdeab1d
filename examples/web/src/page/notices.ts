import { made } from "./elements";

/** A button beside a notice: a way out. */
export interface WayOut {
  readonly label: string;
  act(): void;
}

const MOST = 4;

/** Sentences for the user. Each stays until it is dismissed or too many newer ones came. */
export class Notices {
  constructor(private readonly where: HTMLElement) {}

  show(text: string, waysOut: readonly WayOut[] = []): void {
    for (const other of [...this.where.children]) {
      if (other.firstElementChild?.textContent === text) other.remove();
    }
    const notice = made("div", "", { role: "alert", class: "notice" });
    notice.append(made("p", text));
    const ways = made("div", "", { class: "row" });
    for (const way of waysOut) {
      const chosen = made("button", way.label, { type: "button" });
      chosen.addEventListener("click", () => {
        notice.remove();
        way.act();
      });
      ways.append(chosen);
    }
    if (waysOut.length > 0) notice.append(ways);
    const dismiss = made("button", "×", { type: "button", class: "dismiss", "aria-label": "Dismiss" });
    dismiss.addEventListener("click", () => {
      notice.remove();
      // The keyboard's focus would begin at the top of the page again.
      const next = this.where.querySelector<HTMLElement>(".dismiss") ?? document.getElementById("continue");
      next?.focus();
    });
    notice.append(dismiss);
    this.where.append(notice);
    while (this.where.children.length > MOST) this.where.firstElementChild?.remove();
  }

  /** Waits for what was asked for; its failure becomes a notice. Tells whether it went well. */
  async attempt(wish: Promise<unknown>): Promise<boolean> {
    try {
      await wish;
      return true;
    } catch (error) {
      this.show((error as Error).message);
      return false;
    }
  }
}
