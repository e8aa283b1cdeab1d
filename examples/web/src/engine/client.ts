/** The page's end of the talk with the worker: requests are promises, the rest is told. */

import { GraphError, HostError } from "../host/errors";
import type { FromWorker, RequestName, Requests, ToWorker } from "../protocol";

/** What is used of a Worker. */
export interface WorkerLike {
  postMessage(message: ToWorker): void;
  terminate(): void;
  onmessage: ((event: MessageEvent<FromWorker>) => void) | null;
  onerror: ((event: ErrorEvent) => void) | null;
  onmessageerror: ((event: MessageEvent) => void) | null;
}

export interface Ears {
  planned(message: Extract<FromWorker, { kind: "planned" }>): void;
  status(message: Extract<FromWorker, { kind: "status" }>): void;
  progress(message: Extract<FromWorker, { kind: "progress" }>): void;
  /** The worker is no more: what was asked for is rejected with this error, too. */
  ended(error: HostError): void;
}

interface Waiting {
  resolve(result: unknown): void;
  reject(error: HostError): void;
}

export class Client {
  private waiting = new Map<number, Waiting>();
  private latest = 0;
  private gone: HostError | null = null;

  constructor(
    private readonly worker: WorkerLike,
    private readonly ears: Ears,
  ) {
    worker.onmessage = (event) => this.hear(event.data);
    worker.onerror = (event) => {
      event.preventDefault?.();
      this.end(event.message);
    };
    worker.onmessageerror = () => this.end("a message could not be read");
  }

  /** Rejects with HostError: the worker's own, or that it has ended. */
  request<N extends RequestName>(kind: N, args: Requests[N]["args"]): Promise<Requests[N]["result"]> {
    if (this.gone) return Promise.reject(this.gone);
    const id = ++this.latest;
    return new Promise<Requests[N]["result"]>((resolve, reject) => {
      this.waiting.set(id, { resolve: resolve as Waiting["resolve"], reject });
      try {
        this.worker.postMessage({ kind, id, ...args } as ToWorker);
      } catch (error) {
        this.waiting.delete(id);
        reject(new HostError("input", `This cannot be given to the model's worker (${String(error)}).`));
      }
    });
  }

  tell(message: Extract<ToWorker, { kind: "sounded" | "time" }>): void {
    if (!this.gone) this.worker.postMessage(message);
  }

  private hear(message: FromWorker): void {
    if (message.kind === "done") this.taken(message.id)?.resolve(message.result);
    else if (message.kind === "failed") this.taken(message.id)?.reject(errorOf(message));
    else if (message.kind === "planned") this.ears.planned(message);
    else if (message.kind === "status") this.ears.status(message);
    else this.ears.progress(message);
  }

  private taken(id: number): Waiting | undefined {
    const waiting = this.waiting.get(id);
    this.waiting.delete(id);
    return waiting;
  }

  private end(why: string): void {
    if (this.gone) return;
    const error = new HostError(
      "wasm",
      `The model's worker has ended (${why || "it could not be loaded"}): open the bundle again.`,
    );
    this.gone = error;
    this.worker.terminate();
    const waiting = [...this.waiting.values()];
    this.waiting.clear();
    this.ears.ended(error);
    for (const { reject } of waiting) reject(error);
  }
}

function errorOf({ error, message, graphs }: Extract<FromWorker, { kind: "failed" }>): HostError {
  return graphs ? new GraphError(message, graphs) : new HostError(error ?? "input", message);
}
