import type { SavedEntry, Session, View } from "../view";
import { download, fileName } from "./download";
import { button, element, input, made } from "./elements";
import type { Notices } from "./notices";
import { bytesText } from "./wording";

/** What can be kept of a piece: its notes as MIDI, its memory in this browser or as a file. */
export class PiecePanel {
  private readonly list = element("saved", HTMLUListElement);
  private readonly name = input("save-name");
  private identity: string | null = null;

  constructor(
    private readonly session: Session,
    private readonly notices: Notices,
  ) {
    button("save-midi").addEventListener("click", () => this.saveMidi());
    button("export-state").addEventListener("click", () => void this.exportState());
    element("save-form", HTMLFormElement).addEventListener("submit", (event) => {
      event.preventDefault();
      void this.save();
    });
  }

  show(view: View): void {
    const working = !view.opened || view.phase === "opening";
    button("save-midi").disabled = view.phase === "opening" || view.notes.length === 0;
    button("export-state").disabled = working;
    const saving = element("save-form", HTMLFormElement).querySelector("button") as HTMLButtonElement;
    saving.disabled = working;
    for (const id of ["open-midi", "import-state"]) button(id).disabled = working;
    if ((view.opened?.identity ?? null) === this.identity) return;
    this.identity = view.opened?.identity ?? null;
    void this.refresh();
  }

  private async refresh(): Promise<void> {
    await this.notices.attempt(
      this.session
        .saved()
        .then((entries) => this.list.replaceChildren(...entries.map((entry) => this.row(entry)))),
    );
  }

  private row(entry: SavedEntry): HTMLLIElement {
    const date = new Date(entry.date).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
    const other = entry.fits ? "" : " · of another bundle";
    const what = made("span", entry.name);
    what.append(made("small", `${date} · ${bytesText(entry.bytes)}${other}`));
    const load = made("button", "Load", { type: "button", "aria-label": `Load ${entry.name}` });
    load.disabled = !entry.fits;
    load.addEventListener("click", () => void this.notices.attempt(this.session.load(entry.key)));
    const remove = made("button", "Delete", { type: "button", "aria-label": `Delete ${entry.name}` });
    remove.addEventListener("click", () => void this.remove(entry, remove));
    const row = made("li");
    row.append(what, load, remove);
    return row;
  }

  /** The first press asks, the second deletes. */
  private async remove(entry: SavedEntry, pressed: HTMLButtonElement): Promise<void> {
    if (!pressed.dataset.sure) {
      pressed.dataset.sure = "asked";
      pressed.textContent = "Really?";
      pressed.setAttribute("aria-label", `Really delete ${entry.name}?`);
      return;
    }
    await this.notices.attempt(this.session.remove(entry.key));
    await this.refresh();
    this.name.focus();
  }

  private async save(): Promise<void> {
    if (!(await this.notices.attempt(this.session.save(this.name.value.trim() || moment())))) return;
    this.name.value = "";
    await this.refresh();
  }

  private saveMidi(): void {
    try {
      download(`${fileName()}.mid`, this.session.midi(), "audio/midi");
    } catch (error) {
      this.notices.show((error as Error).message);
    }
  }

  private async exportState(): Promise<void> {
    const name = this.name.value.trim() || moment();
    await this.notices.attempt(
      this.session
        .exportState(name)
        .then((data) => download(`${fileName()}.dsmr-state`, data, "application/octet-stream")),
    );
  }
}

const moment = (): string => new Date().toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
