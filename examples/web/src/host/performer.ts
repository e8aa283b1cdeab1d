/** A stream that listens and plays without a clock: what `dsmr play` does from file to file. Same bundle, ids
 * heard, sampling and seed: same tokens. */

import type { Bundle } from "./bundle";
import { Paced } from "./grammar";
import { SAMPLING } from "./memory";
import { Pcg64 } from "./pcg64";
import { hear } from "./prompt";
import { paceBias, type Sampling, sample } from "./sampling";
import type { Stream } from "./stream";

export class Performer {
  private readonly rng: Pcg64;
  private readonly mask: Paced;
  private readonly bias: Float32Array;

  constructor(
    private readonly bundle: Bundle,
    private readonly stream: Stream,
    seed = 0,
    private readonly sampling: Sampling = SAMPLING,
  ) {
    this.rng = Pcg64.seeded(seed);
    this.mask = new Paced(bundle.grammar());
    this.bias = paceBias(bundle.table, bundle.manifest.generation?.pace ?? 0);
  }

  /** A new piece: forgets everything but the random generator, then hears BOS and ids. */
  begin(ids: readonly number[] = []): void {
    this.stream.reset();
    this.mask.reset();
    this.hear([this.bundle.manifest.special.bos, ...ids]);
  }

  /** Ids that somebody else played. */
  hear(ids: readonly number[]): void {
    hear(this.stream, this.mask, ids);
  }

  /** The next token, which the stream has then heard. */
  next(): number {
    const token = sample(this.stream.logits, this.sampling, this.rng, this.mask.allowed, this.bias);
    this.stream.step(token);
    this.mask.advance(token);
    return token;
  }
}
