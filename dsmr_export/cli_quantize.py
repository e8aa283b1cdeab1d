"""`dsmr quantize`: what each matrix's quantization costs, and the smallest file inside a bound."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dsmr_export.errors import CheckpointError, TargetError
from dsmr_export.options import PATH, data_options, json_option, open_bundle, reference_option
from dsmr_export.progress import counter, stages
from dsmr_export.terminal import command_line, print_json, require, stderr, stdout

if TYPE_CHECKING:
    from dsmr_export.pack import Packed, Request
    from dsmr_export.runtime.bundle import Bundle
    from dsmr_export.sensitivity import Choice
    from dsmr_export.targets.loader import Recipe


@click.command()
@click.argument("bundle", type=PATH)
@click.option("--sweep", is_flag=True, help="Measure what each matrix costs alone.")
@click.option(
    "--max-change",
    type=float,
    metavar="SHARE",
    help="Write the smallest bundle whose perplexity changes by at most this share, as in 0.001.",
)
@click.option(
    "--quantize",
    "graph",
    type=click.Choice(["int8", "int4"]),
    default="int4",
    show_default=True,
    help="Which graph: int4 mixes int4, int8 and float, int8 the last two.",
)
@click.option("--target", help="Device profile whose recipe to use.  [default: the bundle's]")
@data_options
@click.option(
    "--tokens", type=click.IntRange(64), help="Tokens of each piece that is streamed.  [default: 1024]"
)
@reference_option
@click.option(
    "-o",
    "--output",
    type=PATH,
    default=Path("dsmr-bundle-mixed"),
    show_default=True,
    help="Folder that --max-change writes.",
)
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@click.option("--plots", type=PATH, help="Draw the sweep into this folder, as PNG and SVG.")
@json_option
def quantize(
    bundle: Path,
    sweep: bool,
    max_change: float | None,
    graph: str,
    target: str | None,
    data_path: Path | None,
    split: str | None,
    limit: int | None,
    tokens: int | None,
    checkpoint: Path | None,
    output: Path,
    force: bool,
    plots: Path | None,
    as_json: bool,
) -> None:
    """Find out which matrices may have fewer bits.

    The bundle's fp32 graph is the reference. --max-change starts from every matrix at its fewest bits and
    raises the worst ones; the choice is recorded for each tensor in the new bundle's manifest.

    \b
    Example:
      dsmr quantize dsmr-bundle --sweep --plots pictures
      dsmr quantize dsmr-bundle --quantize int4 --max-change 0.001 -o small
    """
    if not sweep and max_change is None:
        raise click.UsageError("give --sweep, --max-change or both")
    require("torch", "export")
    require("onnx", "export")
    from dsmr_export import sensitivity, tables

    opened = open_bundle(bundle)
    profile = target or opened.manifest.target or "generic"
    recipe = _recipe(opened, profile, target is None, graph)
    request = None
    if max_change is not None:  # what cannot be written is refused before minutes of sweeping
        sensitivity.require_bound(max_change)
        request = _request(opened, graph, profile, checkpoint, output, force)
    if plots is not None:
        require("matplotlib", "train")
        from dsmr_export import figures

        figures.require_folder(plots)
    pieces = _pieces(opened, data_path, split, limit, tokens)
    choice = None
    with sensitivity.weighing(opened, recipe, pieces) as scale, stages("graphs") as progress:
        costs, streamed = sensitivity.sweep(scale, progress), scale.tokens
        if max_change is not None:
            choice = sensitivity.choose(scale, graph, costs, max_change, progress)
    if plots is not None:
        from dsmr_export import sensitivity_figure

        figures.save(sensitivity_figure.draw(costs), plots, "sensitivity")
    packed = None
    if choice is not None and request is not None:
        packed = _write(replace(request, plans={graph: choice.best.plan}))
    if as_json:
        print_json(_plain(graph, streamed, costs, choice, packed))
        return
    out = stdout()
    if sweep:
        out.print(tables.sensitivity_table(costs, streamed))
    if choice is not None and packed is not None:
        best, lowest = choice.best, choice.lowest
        counts = ", ".join(f"{count} {level}" for level, count in best.levels.items())
        out.print(
            f"{counts}: {best.bytes:,} bytes, change {best.change:+.1e}, KL {best.kl:.1e} "
            f"(lowest levels only: {lowest.bytes:,} bytes, {lowest.change:+.1e}, {lowest.kl:.1e}; "
            f"{choice.measured} plans measured)",
            soft_wrap=True,
        )
        out.print(tables.parity_table(packed.parity, packed.manifest))
        out.print(f"bundle: {packed.path}", soft_wrap=True)


def _pieces(
    bundle: Bundle, data_path: Path | None, split: str | None, limit: int | None, tokens: int | None
) -> list[Any]:
    """The beginnings of the longest pieces: of the bundled validation split, or of what was given."""
    from dsmr_export import corpus, parity, sensitivity

    found = corpus.pieces(data_path, split or ("validation" if data_path is None else None), limit)
    pieces = parity.read_pieces(bundle, found, lambda text: click.echo(text, err=True))
    longest = sorted(pieces, key=lambda ids: -len(ids))
    kept = longest if limit else longest[: sensitivity.PIECES]
    return [ids[: (tokens or sensitivity.TOKENS) + 1] for ids in kept]


def _recipe(bundle: Bundle, profile: str, own: bool, graph: str) -> Recipe:
    """The recipe of the profile that was named, or of the bundle's own."""
    from dsmr_export.targets import loader

    if own and profile not in loader.names():
        raise TargetError(
            f"{bundle.path} was made for {profile}, a profile of your own: give its file as --target"
        )
    return loader.load(profile).recipe(graph)


def _request(
    bundle: Bundle, graph: str, profile: str, checkpoint: Path | None, output: Path, force: bool
) -> Request:
    """How to export the bundle again: from its own checkpoint, all that it holds, and `graph`.

    Raises CheckpointError where the checkpoint is not the bundle's, and what `pack` raises before it writes.
    """
    from dsmr_export import pack, parity

    source, reason = parity.find_reference(bundle, checkpoint)
    if source is None:
        raise CheckpointError(reason)
    manifest = bundle.manifest
    names = [name for name in ("int8", "int4") if name in manifest.graphs or name == graph]
    states = {
        tensor.dtype for name in names if name in manifest.graphs for tensor in manifest.graphs[name].state
    }
    request = pack.Request(
        output=output,
        checkpoint=source.path,
        schedule=manifest.schedule.name,
        quantize=tuple(names),
        quantize_state=states.pop() if len(states) == 1 else None,
        ops=("fused", "portable") if "portable" in manifest.graphs else ("fused",),
        target=profile,
        force=force,
        command=command_line(),
    )
    pack.check(request)
    return request


def _write(request: Request) -> Packed:
    from dsmr_export import pack

    log = stderr()
    total = (len(request.graphs()) + 1) * pack.GATE_PIECES * pack.GATE_TOKENS
    with counter("parity", total) as progress:
        return pack.pack(request, lambda text: log.print(text, soft_wrap=True), progress)


def _plain(
    graph: str, tokens: int, costs: list[Any], choice: Choice | None, packed: Packed | None
) -> dict[str, Any]:
    from dsmr_export import pack

    found: dict[str, Any] = {"graph": graph, "tokens": tokens, "tensors": [asdict(cost) for cost in costs]}
    if choice is not None and packed is not None:
        found["choice"] = {
            **{name: value for name, value in asdict(choice.best).items() if name != "errors"},
            "levels": choice.best.levels,
            "lowest_bytes": choice.lowest.bytes,
            "measured": choice.measured,
        }
        found["bundle"] = pack.summary(packed)
    return found
