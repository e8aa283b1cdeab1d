"""`dsmr bench`: how fast a bundle is here, beside what people would use instead."""

from __future__ import annotations

from pathlib import Path

import click

from dsmr_export.options import (
    PATH,
    bundle_argument,
    json_option,
    open_bundle,
    reference_option,
    threads_option,
    whole_numbers,
)
from dsmr_export.progress import stages
from dsmr_export.terminal import print_json, require, stdout


@click.command()
@bundle_argument
@reference_option
@click.option("--graph", "graphs", multiple=True, help="Graph, can be given several times.  [default: all]")
@click.option(
    "--peers",
    default="pytorch_eager",
    show_default=True,
    help="Names with commas, all, or none. Those that are not installed are named.",
)
@click.option("--steps", type=click.IntRange(1), help="Steps of each to time.  [default: 1000]")
@threads_option
@click.option(
    "--also-threads",
    callback=whole_numbers,
    default="1,2,4",
    show_default=True,
    help="Other numbers of threads to time steps with.",
)
@click.option(
    "--growth",
    "grown",
    default="none",
    show_default=True,
    help="What else a token's cost is measured against: horizon, position, size, threads, schedules, with "
    "commas, or all. Minutes.",
)
@click.option("--walk", is_flag=True, help="For position: feed every token up to a million.")
@click.option("--plots", type=PATH, help="Draw what grew, one SVG each, into this folder.")
@click.option("--csv", "csv_file", type=PATH, help="Also write the figures to this file, one row each.")
@json_option
def bench(
    bundle: Path | None,
    checkpoint: Path | None,
    graphs: tuple[str, ...],
    peers: str,
    steps: int | None,
    threads: int | None,
    also_threads: tuple[int, ...],
    grown: str,
    walk: bool,
    plots: Path | None,
    csv_file: Path | None,
    as_json: bool,
) -> None:
    """Time every graph of a bundle, and the same model in other runtimes, in turns.

    Says what the architecture implies, then what was measured: start, single steps with sampling, segments,
    threads, memory, processor time at 50 tokens a second, where a step's time goes, and how far it is from
    what reading memory alone would take. The last line of stdout is all of it as one JSON object.

    \b
    Example:
      dsmr bench dsmr-bundle --threads 1
      dsmr bench dsmr-bundle --peers all --csv bench.csv
      dsmr bench dsmr-bundle --growth position,schedules --plots pictures
    """
    from dsmr_export.bench import growth_figure, render
    from dsmr_export.bench import run as benchmark
    from dsmr_export.bench.growth import WHAT
    from dsmr_export.runtime.files import write_atomically

    if plots is not None:
        require("matplotlib", "pictures")
    opened = open_bundle(bundle)
    with stages("turns") as advance:
        result = benchmark.run(
            opened,
            checkpoint,
            steps or benchmark.STEPS,
            threads,
            _names(peers),
            also_threads,
            graphs,
            WHAT if grown == "all" else _names(grown),
            walk,
            advance,
        )
    if not as_json:
        render.render(result, stdout())
    print_json(result)
    if csv_file is not None:
        write_atomically(csv_file, render.as_csv(result).encode())
    if plots is not None:
        for path in growth_figure.write(result["growth"], plots):
            click.echo(str(path), err=True)


def _names(text: str) -> tuple[str, ...]:
    return () if text == "none" else tuple(name.strip() for name in text.split(","))
