import type { MidiPort, Session, View } from "../view";
import { button, element, made, write } from "./elements";
import type { Notices } from "./notices";

/** Keyboards to listen to and instruments to play on, once the browser let us. */
export class MidiPanel {
  private connected = false;

  constructor(session: Session, notices: Notices) {
    button("connect-midi").addEventListener("click", async () => {
      this.connected = await notices.attempt(session.connectMidi());
      this.show(session.view());
    });
    const [listen, play] = [element("midi-in", HTMLSelectElement), element("midi-out", HTMLSelectElement)];
    listen.addEventListener("change", () => session.chooseInput(listen.value || null));
    play.addEventListener("change", () => session.chooseOutput(play.value || null));
  }

  show(view: View): void {
    const there = this.connected || view.inputs.length + view.outputs.length > 0;
    button("connect-midi").hidden = there;
    element("ports", HTMLDivElement).hidden = !there;
    const problem = element("midi-problem", HTMLParagraphElement);
    write(problem, view.midiProblem ?? "");
    problem.hidden = !view.midiProblem;
    offer(element("midi-in", HTMLSelectElement), view.inputs, "all keyboards");
    offer(element("midi-out", HTMLSelectElement), view.outputs, "the built-in sound only");
  }
}

function offer(select: HTMLSelectElement, ports: readonly MidiPort[], none: string): void {
  const key = ports.map(({ id, name }) => `${id} ${name}`).join("\n");
  if (select.dataset.ports !== key) {
    select.dataset.ports = key;
    const options = ports.map(({ id, name }) => made("option", name, { value: id }));
    select.replaceChildren(made("option", none, { value: "" }), ...options);
  }
  const chosen = ports.filter((port) => port.chosen);
  select.value = chosen.length === 1 ? chosen[0].id : "";
}
