import type { Spread } from "../timings";
import type { View } from "../view";
import { element, made, write } from "./elements";
import { bytesText, count, layersText, milliseconds, plural } from "./wording";

const EVERY_MS = 500;

/** How model and sound fare, in numbers. */
export class Figures {
  private readonly list = element("figures", HTMLDListElement);
  private readonly panel = element("figures-panel", HTMLDetailsElement);
  private readonly values = new Map<string, HTMLElement>();
  private waiting = 0;

  constructor(private readonly view: () => View) {
    this.panel.addEventListener("toggle", () => this.show());
  }

  /** Soon: numbers that change faster than that cannot be read. */
  show(): void {
    if (this.waiting || !this.panel.open) return;
    this.write();
    this.waiting = window.setTimeout(() => {
      this.waiting = 0;
      if (this.panel.open) this.write();
    }, EVERY_MS);
  }

  private write(): void {
    for (const [name, text] of figures(this.view())) {
      let value = this.values.get(name);
      if (!value) {
        value = made("dd");
        value.dataset.figure = name;
        this.values.set(name, value);
        const pair = made("div");
        pair.append(made("dt", name), value);
        this.list.append(pair);
      }
      write(value, text);
    }
  }
}

function* figures(view: View): Iterable<readonly [name: string, text: string]> {
  const { opened, stepMs, waits } = view;
  const spread = (value: Spread | null) =>
    value
      ? `p50 ${milliseconds(value.p50)}, p99 ${milliseconds(value.p99)}, max ${milliseconds(value.max)}`
      : "not yet";
  yield [
    "A token",
    stepMs
      ? `p50 ${milliseconds(stepMs.p50)}, p99 ${milliseconds(stepMs.p99)}, of ${plural(stepMs.count, "token")}`
      : "not yet",
  ];
  yield ["Answer, from the wish to its first sound", spread(view.answerMs)];
  yield ["Lateness of the model's notes", spread(view.latenessMs)];
  const waited = `${plural(waits.count, "time")}, ${waits.seconds.toFixed(2)} s in all`;
  yield ["Music waited for inference", waits.count > 0 ? waited : "never"];
  yield ["From a key to its sound", view.soundMs === null ? "not yet" : milliseconds(view.soundMs)];
  yield ["Heard and played", plural(view.position, "token")];
  if (!opened) return;
  const groups = view.horizons.map(({ layers, tokens }) => `${layersText(layers)}: ${count(tokens)}`);
  yield ["Memory, tokens", `${groups.join("; ")}; ${count(opened.budgetTokens)} in all`];
  yield ["Graph", opened.reason];
  yield ["Size", `model ${bytesText(opened.modelBytes)}, its state ${bytesText(opened.stateBytes)}`];
  const { version, threads, simd } = opened.runtime;
  const how = `WASM, ${plural(threads, "thread")}, ${simd ? "SIMD" : "no SIMD"}`;
  yield ["Runtime", `onnxruntime-web ${version}: ${how}`];
  yield [
    "Bundle",
    `${opened.name} ${opened.identity.slice(0, 12)}, ${opened.licence}, trained on ${opened.trainedOn}`,
  ];
}
