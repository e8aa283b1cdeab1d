import type { Source } from "../protocol";
import type { Session, View } from "../view";
import { download, fileName } from "./download";
import { button, element, input, write } from "./elements";
import type { Notices, WayOut } from "./notices";
import { chosenFolder, dropped, type Found, type Gathered, gather } from "./sources";

/** How bundles, MIDI files and saved states come in: dropped anywhere, chosen with buttons, by address. */
export class Opening {
  private readonly panel = element("opener", HTMLElement);
  private readonly toggle = button("show-opener");
  private asked = false;

  constructor(
    private readonly session: Session,
    private readonly notices: Notices,
  ) {
    this.toggle.addEventListener("click", () => this.ask(!this.asked));
    this.choice("choose-folder", "folder-input", chosenFolder);
    this.choice("choose-file", "file-input", (files) => gather([...files]));
    this.choice("open-midi", "midi-input", (files) => gather([...files]));
    this.choice("import-state", "state-input", (files) => gather([...files]));
    element("address-form", HTMLFormElement).addEventListener("submit", (event) => {
      event.preventDefault();
      void this.bundle({ kind: "url", url: input("address").value });
    });
    this.drops();
  }

  /** The bundle that is served beside this page, where there is one. Returns whether there is. */
  async served(): Promise<boolean> {
    const site = await fetch("./site.json")
      .then((response) => (response.ok ? response.json() : null))
      .catch(() => null);
    if (typeof site?.bundle !== "string") return false;
    await this.bundle({ kind: "url", url: new URL(site.bundle, location.href).href });
    return true;
  }

  /** Closes the panel; whether it was open. */
  close(): boolean {
    if (!this.asked) return false;
    this.ask(false);
    this.toggle.focus();
    return true;
  }

  show(view: View, started: boolean): void {
    const nothing = started && view.phase === "empty";
    this.panel.hidden = view.phase === "opening" || !(nothing || this.asked);
    this.toggle.hidden = nothing || !view.opened;
    this.toggle.setAttribute("aria-expanded", String(!this.panel.hidden));
    write(element("bundle-name", HTMLSpanElement), view.opened?.name ?? "");
    element("progress", HTMLDivElement).hidden = !view.progress;
    if (!view.progress) return;
    write(element("progress-what", HTMLSpanElement), view.progress.what);
    element("progress-bar", HTMLProgressElement).value = view.progress.share;
  }

  private ask(wanted: boolean): void {
    this.asked = wanted;
    this.panel.hidden = !wanted;
    this.toggle.setAttribute("aria-expanded", String(wanted));
    if (wanted) button("choose-folder").focus();
  }

  async bundle(source: Source, graph?: string): Promise<void> {
    const before = this.session.view();
    const piece = before.notes.length > 0 ? this.session.midi() : null;
    try {
      await this.session.open(source, graph);
      this.asked = false;
      if (piece) this.offer(before.opened?.name, piece);
    } catch (error) {
      const { message, graphs = [] } = error as Error & { graphs?: readonly string[] };
      this.notices.show(message, this.otherGraphs(source, graphs));
      if (!this.session.view().opened) this.asked = true;
    }
  }

  /** What was played with the bundle before would be lost. */
  private offer(name: string | undefined, piece: Uint8Array): void {
    const save = { label: "Save its .mid", act: () => download(`${fileName()}.mid`, piece, "audio/midi") };
    const which =
      name === undefined ? "The piece from before" : `Another bundle is open: the piece with ${name}`;
    this.notices.show(`${which} has ended.`, [save]);
  }

  /** The portable graph needs no kernel that a browser may lack: it is offered first. */
  private otherGraphs(source: Source, graphs: readonly string[]): WayOut[] {
    const portable = graphs.filter((graph) => graph.includes("portable"));
    const others = graphs.filter((graph) => !graph.includes("portable"));
    return [...portable, ...others].map((graph) => ({
      label: graph === "portable" ? "Use the portable graph" : `Use the graph ${graph}`,
      act: () => void this.bundle(source, graph),
    }));
  }

  private async use(gathering: Gathered | Promise<Gathered>): Promise<void> {
    try {
      const { found, ignored } = await gathering;
      if (found) {
        if (ignored.length > 0) this.notices.show(`One thing at a time: ignored ${listed(ignored)}.`);
        await this.take(found);
      } else if (ignored.length > 0) {
        this.notices.show(
          `${listed(ignored)}: neither a MIDI file nor a bundle (a folder or a .zip) nor a saved state.`,
        );
      }
    } catch (error) {
      this.notices.show(`It cannot be read (${(error as Error).message}): try to choose it with a button.`);
    }
  }

  private async take(found: Found): Promise<void> {
    if (found.kind === "bundle") return this.bundle(found.source);
    if (!this.session.view().opened) {
      return this.notices.show(`${found.file.name} needs a model that hears it: open a bundle first.`);
    }
    const { name } = found.file;
    const data = await found.file.arrayBuffer();
    const wish = found.kind === "midi" ? this.session.file(name, data) : this.session.importState(name, data);
    if (await this.notices.attempt(wish)) this.asked = false;
  }

  private choice(opener: string, picker: string, meaning: (files: FileList) => Gathered | Promise<Gathered>) {
    const files = input(picker);
    button(opener).addEventListener("click", () => files.click());
    files.addEventListener("change", () => {
      if (!files.files) return;
      const gathering = meaning(files.files);
      void this.use(gathering).finally(() => {
        files.value = ""; // so that the same file can be chosen again
      });
    });
  }

  /** The whole window is one place to drop on. */
  private drops(): void {
    const hint = element("drop", HTMLDivElement);
    const carriesFiles = (event: DragEvent) => event.dataTransfer?.types.includes("Files") ?? false;
    window.addEventListener("dragover", (event) => {
      if (!carriesFiles(event)) return;
      event.preventDefault();
      hint.hidden = false;
    });
    window.addEventListener("dragleave", (event) => {
      if (event.relatedTarget === null) hint.hidden = true;
    });
    window.addEventListener("drop", (event) => {
      hint.hidden = true;
      if (!event.dataTransfer || !carriesFiles(event)) return;
      event.preventDefault();
      void this.use(gather(dropped(event.dataTransfer)));
    });
  }
}

function listed(names: readonly string[]): string {
  const shown = names.slice(0, 3).join(", ");
  return names.length > 3 ? `${shown} and ${names.length - 3} more` : shown;
}
