/** The worker: one memory, and the model that plans for it, a few tokens between two looks into the inbox. */

import { HostError } from "./host/errors";
import { sentence } from "./host/host";
import type { FromWorker, ToWorker } from "./protocol";
import { Desk } from "./worker/desk";

const post = (message: FromWorker, transfer: Transferable[] = []) => self.postMessage(message, { transfer });
const desk = new Desk(post);
const inbox: ToWorker[] = [];
let wake = () => {};

self.onmessage = (event: MessageEvent<ToWorker>) => {
  inbox.push(event.data);
  wake();
};

/** Lets messages in that came meanwhile: a message to oneself stands behind them, and is not held back as a timer
 * of 0 ms is. */
const { port1, port2 } = new MessageChannel();
const breath = () =>
  new Promise<void>((resolve) => {
    port1.onmessage = () => resolve();
    port2.postMessage(null);
  });

async function work(): Promise<never> {
  for (;;) {
    const message = inbox.shift();
    if (message) await answer(message);
    else if (desk.planSome()) await breath();
    else await new Promise<void>((resolve) => (wake = resolve));
  }
}

async function answer(message: ToWorker): Promise<void> {
  try {
    const { result, transfer } = await desk.handle(message);
    if ("id" in message) post({ kind: "done", id: message.id, result }, transfer);
  } catch (error) {
    const kind = error instanceof HostError ? error.kind : null;
    const graphs = (error as { graphs?: readonly string[] }).graphs;
    if ("id" in message)
      post({ kind: "failed", id: message.id, error: kind, message: sentence(error), graphs });
    // A trap leaves onnxruntime in pieces: the page is told, and begins with another worker.
    if (!("id" in message) || error instanceof WebAssembly.RuntimeError) throw error;
  }
}

// A rejection alone would never reach the page, which would wait for ever.
work().catch((error) => self.reportError(error));
