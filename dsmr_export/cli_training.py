"""The commands that make, judge and compare checkpoints: `dsmr train`, `eval`, `study`. They need torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from dsmr_export import schedule as schedules
from dsmr_export.corpus import SPLITS
from dsmr_export.errors import DsmrError
from dsmr_export.options import (
    PATH,
    comma_list,
    data_options,
    json_option,
    train_options,
    train_options_but,
    whole_numbers,
)
from dsmr_export.progress import stages
from dsmr_export.terminal import command_line, print_json, require, stderr, stdout

if TYPE_CHECKING:
    from dsmr_export.model.checkpoint import Checkpoint
    from dsmr_export.model.data import TokenizedPiece
    from dsmr_export.model.train_config import TrainConfig


@click.command()
@click.option(
    "--data",
    "data_path",
    type=PATH,
    help="MIDI folder or zip; without splits, every tenth piece validates.  [default: the bundled pieces]",
)
@click.option("--limit", type=click.IntRange(1), help="Only the first N pieces of each split.")
@click.option("--out", type=PATH, help="Run folder; only --profile needs none.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out; its options are kept.")
@click.option("--init", type=PATH, help="Checkpoint to start from.  [default: random weights]")
@click.option("--device", help="cpu or cuda.  [default: cuda where there is one]")
@click.option("--tensorboard", is_flag=True, help="Log for TensorBoard too, which must be installed.")
@click.option("--profile", is_flag=True, help="Train nothing: measure time and memory of a step.")
@click.option(
    "--beside",
    multiple=True,
    metavar="SCHEDULE",
    help="With --profile: one more schedule to measure; it may exceed --budget, and there may be several.  "
    "[default: full, as far as the longest horizon]",
)
@click.option("--json", "as_json", is_flag=True, help="With --profile: print one JSON object.")
@train_options
@click.pass_context
def train(
    context: click.Context,
    out: Path | None,
    data_path: Path | None,
    limit: int | None,
    resume: bool,
    init: Path | None,
    device: str | None,
    tensorboard: bool,
    profile: bool,
    beside: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Train a DSMR, one whole piece per lane, recurrent state carried from segment to segment.

    \b
    Example:
      dsmr train --data maestro-v3.0.0-midi.zip --out runs/first --minutes 60
      dsmr train --data maestro-v3.0.0-midi.zip --out runs/first --minutes 120 --resume
      torchrun --nproc-per-node 8 -m dsmr_export.model.train --out runs/second --steps 50000 --lanes 64
      dsmr train --profile --schedule two_scale --beside full:cap=4096
    """
    if not profile and (beside or as_json):
        raise click.UsageError(f"{'--beside' if beside else '--json'} goes with --profile")
    if not profile and out is None:
        raise click.UsageError("Missing option '--out'.")
    require("torch", "train")

    from dsmr_export.model import train as training
    from dsmr_export.model.train_config import TrainConfig

    device = device or _default_device()
    if profile:
        if options["steps"] is None and options["minutes"] is None:
            options["steps"] = 1  # a profile is as long as it is
        _profile(TrainConfig(**options), beside, device, as_json)
        return
    assert out is not None
    if resume and options["steps"] is None and options["minutes"] is None:
        options |= training.saved_length(out)
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


def _profile(config: TrainConfig, beside: Sequence[str], device: str, as_json: bool) -> None:
    from dsmr_export.model import distributed, profile

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise DsmrError("--profile measures one process: run it without torchrun")
    with distributed.join(device):
        pass  # it is there
    others = beside or [profile.default_beside(config)]
    configs = {config.schedule: config} | {text: profile.beside(config, text) for text in others}
    with stages("turns") as show:
        result = profile.report(configs, device, lambda done, total: show("profile", done, total))
    if as_json:
        print_json(result)
    else:
        profile.render(result, stdout())


@click.command("eval")
@click.argument("checkpoint", type=PATH, required=False)
@data_options
@click.option("--plots", type=PATH, help="Folder for pictures of the figures, each as PNG and SVG.")
@click.option("--device", help="cpu or cuda.  [default: cuda where there is one]")
@json_option
def evaluate(
    checkpoint: Path | None,
    data_path: Path | None,
    split: str | None,
    limit: int | None,
    plots: Path | None,
    device: str | None,
    as_json: bool,
) -> None:
    """What a checkpoint makes of whole pieces in PyTorch, and what its memory is worth.

    Perplexity, nats per token, note and second of music; perplexity by position; what a truncated history
    costs; and KRCU, the mean increase of the NLL after the recurrent state was emptied at 8,192 tokens.

    \b
    Example:
      dsmr eval runs/mine/best --data maestro-v3.0.0-midi.zip --split validation
      dsmr eval --plots pictures
    """
    require("torch", "train")
    if plots is not None:
        require("matplotlib", "train")

    from dsmr_export import figures, tables
    from dsmr_export.model import checkpoint as checkpoints
    from dsmr_export.model import distributed, history

    source = checkpoints.load(checkpoint)
    if plots is not None:
        figures.require_folder(plots)
    with distributed.join(device or _default_device()) as here:
        pieces = _read_pieces(source, data_path, split, limit)
        with stages("tokens") as progress:
            found = history.judge(source, pieces, device=str(here.device), progress=progress)
    if as_json:
        print_json(found)
    else:
        for table in tables.evaluation_tables(found):
            stdout().print(table, soft_wrap=isinstance(table, str))
    if plots is not None:
        schedule = found["schedule"]
        name = schedule["text" if schedule["name"] == schedules.EXPLICIT else "name"]
        for path in figures.write_all({name: found}, plots):
            stderr().print(str(path), soft_wrap=True)


@click.command()
@click.option("--data", type=PATH, help="MIDI folder or zip.  [default: the bundled pieces]")
@click.option("--limit", type=click.IntRange(1), help="Only the first N pieces of each split in training.")
@click.option("--out", type=PATH, required=True, help="Folder of the study.")
@click.option(
    "--schedule",
    "schedules",
    multiple=True,
    help="One to compare: NAME, LIST or NAME:key=value,…, and @kv_heads=K after it for the same bytes in "
    "fewer heads; repeat it.  [default: two_scale, uniform, reverse_two_scale, both progressive ones, "
    "perceiver_ar_like, full@kv_heads=2 and 1, and full:cap=BUDGET, which is beyond the budget]",
)
@click.option("--seeds", callback=whole_numbers, help="Seeds of every schedule.  [default: 0,1]")
@click.option(
    "--eval-split",
    "eval_splits",
    callback=comma_list(*SPLITS),
    help="What is judged.  [default: validation,test, or validation where no splits are named]",
)
@click.option("--eval-limit", type=click.IntRange(1), help="Only the first N pieces of each judged split.")
@click.option(
    "--only",
    type=click.Choice(["train", "evaluate", "measure", "report"]),
    help="One stage alone; a report says what is missing.  [default: what is not done of all of them]",
)
@click.option("--device", help="cpu or cuda.  [default: cuda where there is one]")
@train_options_but("schedule", "seed", "minutes")
@json_option
@click.pass_context
def study(
    context: click.Context, out: Path, only: str | None, device: str | None, as_json: bool, **options: Any
) -> None:
    """Train schedules of equal state bytes with several seeds, judge all of them, and write one table.

    Run again, it goes on where it stopped; options that are left out are then those of its start. A run that
    breaks down is reported, the others go on, and the exit code is 1.

    \b
    Example:
      dsmr study --data maestro-v3.0.0-midi.zip --out studies/first --steps 4000
      dsmr study --out studies/first --only report
      dsmr study --out studies/second --steps 300 --schedule two_scale --schedule full@kv_heads=1 --seeds 0
    """
    require("torch", "train")
    require("matplotlib", "train")

    from dsmr_export import tables
    from dsmr_export.model import study as studies
    from dsmr_export.model import study_output, study_plan, study_report

    device = device or _default_device()
    default = ParameterSource.DEFAULT
    given = {k: v for k, v in options.items() if context.get_parameter_source(k) is not default}
    asked = study_plan.settle(out, given)
    studies.prepare(asked, out, reads_data=only not in ("measure", "report"))
    if only in (None, "train"):
        studies.train(asked, out, device, stderr(), command_line())
    if only in (None, "evaluate"):
        studies.evaluate(asked, out, device, stderr())
    if only in (None, "measure"):
        studies.measure(asked, out, device)
    found = study_report.collect(asked, out)
    study_output.write(asked, found, out)
    if as_json:
        print_json(found)
    else:
        stdout().print(tables.study_table(found))
        for sentence in (*found["warnings"], *found["missing"]):
            stderr().print(sentence, soft_wrap=True)
        stderr().print(f"{out / 'study.md'}", soft_wrap=True)
    if found["failed"]:
        raise DsmrError("; ".join(found["failed"]))


def _default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def pieces_through_miditok(
    source: Checkpoint, data_path: Path | None, split: str | None, limit: int | None
) -> list[Any]:
    return [piece.ids for piece in _read_pieces(source, data_path, split, limit)]


def _read_pieces(
    source: Checkpoint, data_path: Path | None, split: str | None, limit: int | None
) -> list[TokenizedPiece]:
    from dsmr_export import corpus
    from dsmr_export.model import data

    split = split or corpus.default_split(data_path)
    return data.load(data_path, split, source.tokenizer(), limit).pieces
