"""The commands that make and judge checkpoints: `dsmr train` and `dsmr eval`. They need torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from dsmr_export.options import PATH, data_options, json_option, train_options
from dsmr_export.progress import counter
from dsmr_export.terminal import command_line, print_json, require, stdout

if TYPE_CHECKING:
    from dsmr_export.model.checkpoint import Checkpoint


@click.command()
@click.option(
    "--data",
    "data_path",
    type=PATH,
    help="MIDI folder or zip; without splits, every tenth piece validates.  [default: the bundled pieces]",
)
@click.option("--limit", type=click.IntRange(1), help="Only the first N pieces of each split.")
@click.option("--out", type=PATH, required=True, help="Run folder.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out; its options are kept.")
@click.option("--init", type=PATH, help="Checkpoint to start from.  [default: random weights]")
@click.option("--device", help="cpu or cuda.  [default: cuda where there is one]")
@click.option("--tensorboard", is_flag=True, help="Log for TensorBoard too, which must be installed.")
@train_options
@click.pass_context
def train(
    context: click.Context,
    out: Path,
    data_path: Path | None,
    limit: int | None,
    resume: bool,
    init: Path | None,
    device: str | None,
    tensorboard: bool,
    **options: Any,
) -> None:
    """Train a DSMR, one whole piece per lane, recurrent state carried from segment to segment.

    \b
    Example:
      dsmr train --data maestro-v3.0.0-midi.zip --out runs/first --minutes 60
      dsmr train --data maestro-v3.0.0-midi.zip --out runs/first --minutes 120 --resume
      torchrun --nproc-per-node 8 -m dsmr_export.model.train --out runs/second --steps 50000 --lanes 64
    """
    require("torch", "train")
    import torch

    from dsmr_export.model import train as training
    from dsmr_export.model.train_config import TrainConfig

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    meter = training.train(
        TrainConfig(**options),
        out,
        data_path,
        limit,
        device,
        resume,
        init=init,
        given=[name for name in options if context.get_parameter_source(name) is not ParameterSource.DEFAULT],
        tensorboard=tensorboard,
        command=command_line(),
    )
    if int(os.environ.get("RANK", "0")):
        return  # worker 0 says it
    click.echo(
        f"best validation perplexity {meter.best_perplexity:.4f} after {meter.tokens:,} tokens: "
        f"{out / 'best'}"
    )


@click.command("eval")
@click.argument("checkpoint", type=PATH, required=False)
@data_options
@json_option
def evaluate(
    checkpoint: Path | None, data_path: Path | None, split: str | None, limit: int | None, as_json: bool
) -> None:
    """Perplexity of a checkpoint in PyTorch, streamed over whole pieces.

    \b
    Example:
      dsmr eval runs/mine/best --data maestro-v3.0.0-midi.zip --split validation
    """
    require("torch", "train")
    from dsmr_export.model import checkpoint as checkpoints
    from dsmr_export.model.evaluate import evaluate as run

    source = checkpoints.load(checkpoint)
    pieces = pieces_through_miditok(source, data_path, split, limit)
    with counter("evaluating", sum(len(ids) - 1 for ids in pieces)) as progress:
        result = run(source.network(), pieces, progress=progress)
    figures = {
        "perplexity": result.perplexity,
        "nats_per_token": result.nats_per_token,
        "per_piece_mean": result.per_piece_mean,
        "tokens": result.tokens,
        "pieces": len(pieces),
    }
    if as_json:
        print_json(figures)
    else:
        stdout().print(
            f"perplexity {result.perplexity:.4f} ({result.nats_per_token:.4f} nats per token; mean over "
            f"pieces {result.per_piece_mean:.4f}), {result.tokens:,} tokens of {len(pieces)} pieces",
            soft_wrap=True,
        )


def pieces_through_miditok(
    source: Checkpoint, data_path: Path | None, split: str | None, limit: int | None
) -> list[Any]:
    from dsmr_export import corpus
    from dsmr_export.model import data

    split = split or corpus.default_split(data_path)
    return [piece.ids for piece in data.load(data_path, split, source.tokenizer(), limit).pieces]
