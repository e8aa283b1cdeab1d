"""`dsmr report`: a bundle as one HTML file."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dsmr_export.options import PATH, bundle_argument, data_options, open_bundle, reference_option
from dsmr_export.progress import counter, stages
from dsmr_export.terminal import command_line, require, stderr, stdout

if TYPE_CHECKING:
    from dsmr_export.report.music import Music
    from dsmr_export.runtime.bundle import Bundle

STEPS = 300
"""Timed steps of each graph where the page measures itself: fewer than `dsmr bench`, which takes minutes."""


@click.command()
@bundle_argument
@reference_option
@data_options
@click.option(
    "--bench",
    "bench_file",
    type=PATH,
    help="Output of dsmr bench --json.  [default: measured now, with fewer steps]",
)
@click.option("--no-bench", is_flag=True, help="No speed in the page.")
@click.option("--prompt", type=PATH, help="MIDI file to continue.  [default: a bundled piece]")
@click.option(
    "--seconds",
    type=click.FloatRange(0.1, 300),
    default=20.0,
    show_default=True,
    help="Music that each graph plays.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="The first of two seeds.")
@click.option(
    "-o",
    "--output",
    type=PATH,
    help="HTML file to write.  [default: report/index.html in BUNDLE, ./dsmr-report.html without one]",
)
@click.option("--force", is_flag=True, help="Replace a file that is no report.")
def report(
    bundle: Path | None,
    checkpoint: Path | None,
    data_path: Path | None,
    split: str | None,
    limit: int | None,
    bench_file: Path | None,
    no_bench: bool,
    prompt: Path | None,
    seconds: float,
    seed: int,
    output: Path | None,
    force: bool,
) -> None:
    """Write a bundle's report: one HTML file that needs no network.

    Schedule, sizes, parity and drift, quantization error, speed, and music to listen to. Parity is the
    export's own unless --data is given.

    \b
    Example:
      dsmr report dsmr-bundle
      dsmr report dsmr-bundle --data maestro-v3.0.0-midi.zip --limit 20 --bench bench.json
      dsmr report --no-bench -o page.html
    """
    if bench_file is not None and no_bench:
        raise click.UsageError("--bench and --no-bench exclude each other: give one of them")
    if data_path is None and (split is not None or limit is not None):
        raise click.UsageError("--split and --limit say which part of --data to read: give that, too")
    for package in ("matplotlib", "jinja2"):
        require(package, "pictures")
    from dsmr_export import report as reports
    from dsmr_export.report import bench_file as bench_files
    from dsmr_export.report import output as outputs

    opened = open_bundle(bundle)
    where = outputs.place(opened, bundle is not None, output, force)
    timed = None if bench_file is None else bench_files.read(bench_file, opened)
    music = _music(opened, prompt, seconds, seed)
    figures, source = _parity(opened, checkpoint, data_path, split, limit)
    if timed is None and not no_bench:
        timed = _measured(opened, checkpoint)
    name = "" if bundle is None else shlex.quote(str(bundle))
    made = reports.build(
        opened,
        reports.Content(
            parity=figures,
            source=source,
            bench=timed,
            music=music,
            name=name,
            date=datetime.now(UTC).strftime("%Y-%m-%d"),
            command=command_line(),
        ),
    )
    outputs.write(where, made.html, opened)
    out = stdout()
    out.print(f"{where.path}: {len(made.html.encode()) / 1000:,.0f} kB", soft_wrap=True)
    for missing in made.left_out:
        out.print(f"left out: {missing.what} To add it: {missing.command}", soft_wrap=True)


def _music(bundle: Bundle, prompt: Path | None, seconds: float, seed: int) -> Music:
    from dsmr_export import corpus
    from dsmr_export.report import music
    from dsmr_export.runtime.play import read_prompt

    if prompt is None:
        piece = corpus.pieces(None, "test")[0]
        reading, name = read_prompt(bundle, piece.read(), piece.name), f"Prompt: {Path(piece.name).stem}"
    else:
        reading, name = read_prompt(bundle, prompt), f"Prompt: {prompt.stem}"
    with stages("s") as progress:
        return music.continuations(bundle, reading.performance, name, seconds, seed, progress)


def _parity(
    bundle: Bundle, checkpoint: Path | None, data_path: Path | None, split: str | None, limit: int | None
) -> tuple[Mapping[str, Any], str]:
    """Figures of every graph, and what they were measured on: the manifest's, or those of --data."""
    from dsmr_export import corpus, parity
    from dsmr_export import schedule as schedules

    if data_path is None:
        return bundle.manifest.parity, "on the pieces that the export's own gate reads"
    source, reason = parity.find_reference(bundle, checkpoint)
    if source is None:
        stderr().print(f"{reason}: no reference, perplexity alone", soft_wrap=True)
        found = corpus.pieces(data_path, split or corpus.default_split(data_path), limit)
        pieces, network = parity.read_pieces(bundle, found, lambda text: click.echo(text, err=True)), None
    else:
        from dsmr_export.cli_training import pieces_through_miditok

        pieces = pieces_through_miditok(source, data_path, split, limit)
        network = source.network(schedules.explicit(bundle.manifest.schedule.horizons))
    graphs = list(bundle.manifest.graphs)
    tokens = (2 * len(graphs) + (network is not None)) * sum(len(ids) - 1 for ids in pieces)
    with counter("checking", tokens) as progress:
        result = parity.check(bundle, pieces, network, graphs, progress=progress)
    return result["graphs"], f"on {result['tokens']:,} tokens of {result['pieces']} pieces ({data_path.name})"


def _measured(bundle: Bundle, checkpoint: Path | None) -> dict[str, Any]:
    from dsmr_export.bench import run as benchmark

    with stages("turns") as progress:
        return benchmark.run(bundle, checkpoint, STEPS, progress=progress)
