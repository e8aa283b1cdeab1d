"""The command line: `dsmr` and its commands, and `dsmr-export` = `dsmr export`.

Results go to stdout, progress and logs to stderr; `--json` prints one object on one line. Usage errors exit
with 2 (click's own), everything else that is refused with 1 and one line. Heavy imports happen inside
commands, so that `dsmr --help` is quick and a device needs no torch.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dsmr_export import (
    __version__,
    cli_bench,
    cli_device,
    cli_doctor,
    cli_play,
    cli_ports,
    cli_quantize,
    cli_report,
    cli_status,
    cli_training,
    cli_web,
)
from dsmr_export.cli_training import pieces_through_miditok
from dsmr_export.options import (
    BYTES,
    PATH,
    bundle_argument,
    comma_list,
    data_options,
    json_option,
    open_bundle,
    reference_option,
    threads_option,
)
from dsmr_export.progress import counter
from dsmr_export.terminal import Refusing, command_line, print_json, require, stderr, stdout

if TYPE_CHECKING:
    from dsmr_export.pack import Prepared
    from dsmr_export.runtime.bundle import Bundle


@click.group(cls=Refusing, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="dsmr")
def main() -> None:
    """Export, check and play Depth-Structured Music Recurrence models.

    \b
    Example:
      dsmr export --schedule two_scale --quantize int8
      dsmr check dsmr-bundle
      dsmr play dsmr-bundle --prompt in.mid --save out.mid --seconds 30
    """


main.add_command(cli_training.train)
main.add_command(cli_training.evaluate)
main.add_command(cli_training.study)
main.add_command(cli_bench.bench)
main.add_command(cli_device.targets)
main.add_command(cli_doctor.doctor)
main.add_command(cli_play.play)
main.add_command(cli_ports.ports)
main.add_command(cli_quantize.quantize)
main.add_command(cli_report.report)
main.add_command(cli_status.status)
main.add_command(cli_web.web)


@main.command("export")
@click.option("--checkpoint", type=PATH, help="Checkpoint folder.  [default: the bundled one]")
@click.option("--schedule", help="NAME, LIST (2048x2,256x6) or NAME:key=value,…  [default: the checkpoint's]")
@click.option(
    "--budget",
    type=click.IntRange(1),
    metavar="TOKENS",
    help="Sum of all horizons.  [default: the checkpoint's]",
)
@click.option(
    "--budget-bytes",
    type=BYTES,
    metavar="BYTES",
    help="The largest two_scale whose recurrent state takes so much: 2000000, 2MB or 2MiB.",
)
@click.option(
    "--quantize",
    default="int8",
    show_default=True,
    callback=comma_list("none", "int8", "int4"),
    help="none, int8, int4, or int8,int4: the device takes what its CPU runs best.",
)
@click.option(
    "--quantize-state",
    type=click.Choice(["none", "int8"]),
    help="Keys and values of the quantized graphs.  [default: the target's]",
)
@click.option(
    "--ops",
    default="fused",
    show_default=True,
    callback=comma_list("fused", "portable"),
    help="fused, portable, or both: fused,portable.",
)
@click.option(
    "--target",
    default="generic",
    show_default=True,
    help="Device profile: a name (dsmr targets), a TOML file, or auto: this machine.",
)
@click.option(
    "-o", "--output", type=PATH, default=Path("dsmr-bundle"), show_default=True, help="Folder to write."
)
@click.option(
    "--opset", type=click.IntRange(18), help="Opset of the graphs.  [default: fused 21, portable 18]"
)
@click.option(
    "--ir-version",
    type=click.IntRange(8, 10),
    default=10,
    show_default=True,
    help="ONNX IR version of the files.",
)
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@click.option("--no-gate", is_flag=True, help="Write the bundle even if parity is outside the gates.")
@click.option("--dry-run", is_flag=True, help="Write nothing: say what the bundle needs on its target.")
@json_option
def export_command(
    no_gate: bool, dry_run: bool, as_json: bool, quantize_state: str | None, **options: Any
) -> None:
    """Export a checkpoint to a verified bundle.

    \b
    Example:
      dsmr-export --schedule two_scale --quantize int8
      dsmr-export --checkpoint runs/mine/best --schedule 2048x2,256x6 --ops fused,portable -o mine
      dsmr-export --target raspberry-pi-5 --quantize int8,int4 --dry-run
    """
    require("torch", "export")
    require("onnx", "export")
    from dsmr_export import pack, tables

    state = {None: None, "none": "float32", "int8": "int8"}[quantize_state]
    request = pack.Request(gate=not no_gate, command=command_line(), quantize_state=state, **options)
    if dry_run:
        _say_needs(pack.prepare(request), as_json)
        return
    log = stderr()
    graphs = len(request.graphs())
    with counter("parity", (graphs + 1) * pack.GATE_PIECES * pack.GATE_TOKENS) as progress:
        packed = pack.pack(request, lambda text: log.print(text, soft_wrap=True), progress)
    if as_json:
        print_json(pack.summary(packed))
        return
    out = stdout()
    out.print(tables.parity_table(packed.parity, packed.manifest))
    for name, errors in packed.errors.items():
        worst = errors[0]
        out.print(
            f"{name}, worst tensor: {worst.tensor}, {worst.sqnr_db:.1f} dB signal to quantization noise",
            soft_wrap=True,
        )
    verdict = (
        "inside the gates"
        if packed.parity["passed"]
        else "OUTSIDE the gates: " + "; ".join(packed.parity["failures"])
    )
    out.print(f"parity: {verdict}", soft_wrap=True)
    out.print(f"bundle: {packed.path}", soft_wrap=True)


def _say_needs(prepared: Prepared, as_json: bool) -> None:
    """What an export would need on its target. Raises TargetError where it does not fit, after saying it."""
    from dsmr_export import budget, tables
    from dsmr_export import schedule as schedules

    rows = [(prepared.schedule, prepared.needs), *prepared.alternatives()]
    if as_json:
        print_json(budget.as_json(rows, prepared.target))
    else:
        out = stdout()
        out.print(schedules.describe(prepared.schedule), soft_wrap=True)
        out.print(budget.sentence(prepared.needs, prepared.target), soft_wrap=True)
        out.print(tables.needs_table(rows, prepared.target))
        out.print(budget.caveat(prepared.target), soft_wrap=True)
    budget.require(prepared.needs, prepared.shape, prepared.target)


@main.command()
@bundle_argument
@reference_option
@data_options
@threads_option
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Where segments are cut.")
@click.option("--graph", "graphs", multiple=True, help="Only this one; may be given again.  [default: all]")
@json_option
def check(
    bundle: Path | None,
    checkpoint: Path | None,
    data_path: Path | None,
    split: str | None,
    limit: int | None,
    threads: int | None,
    seed: int,
    graphs: tuple[str, ...],
    as_json: bool,
) -> None:
    """Check that perplexity in ONNX equals perplexity in PyTorch, on whole pieces.

    Every piece is read in randomly cut segments and again token by token. Without torch, or without the
    checkpoint that the bundle was made from, the bundle's golden vectors are run instead.

    \b
    Example:
      dsmr check
      dsmr check dsmr-bundle --data maestro-v3.0.0-midi.zip --split test --limit 20
      dsmr check dsmr-bundle --graph int8
    """
    from dsmr_export import parity, tables
    from dsmr_export.runtime import check_golden

    opened = open_bundle(bundle)
    names = [name for name in graphs or opened.manifest.graphs if opened.graph(name)]
    log, out = stderr(), stdout()
    source, reason = parity.find_reference(opened, checkpoint)
    if source is None:
        log.print(f"{reason}: golden vectors instead", soft_wrap=True)
        results = [check_golden(opened, name, threads) for name in names]
        passed = all(result.passed for result in results)
        found: dict[str, Any] = {
            "golden": {result.graph: vars(result) for result in results},
            "passed": passed,
        }
        if not as_json:
            out.print(tables.golden_table(results))
        if data_path is not None:
            pieces = _pieces_on_device(opened, data_path, split, limit)
            found |= _with_bar(opened, pieces, None, names, threads, seed) | {"passed": passed}
            if not as_json:
                out.print(tables.parity_table(found, opened.manifest))
                out.print("no reference perplexity: " + reason, soft_wrap=True)
    else:
        pieces = pieces_through_miditok(source, data_path, split, limit)
        from dsmr_export import schedule as schedules

        network = source.network(schedules.explicit(opened.manifest.schedule.horizons))
        found = _with_bar(opened, pieces, network, names, threads, seed)
        if not as_json:
            out.print(tables.parity_table(found, opened.manifest))
            out.print(tables.position_table(found))
    if as_json:
        print_json(found)
    elif found["passed"]:
        out.print("passed", soft_wrap=True)
    if not found["passed"]:
        failures = found.get("failures") or ["the golden vectors differ"]
        raise click.ClickException("not passed: " + "; ".join(failures))


@main.command()
@bundle_argument
@json_option
def info(bundle: Path | None, as_json: bool) -> None:
    """Say what a bundle holds: model, schedule, graphs, where it came from.

    \b
    Example:
      dsmr info dsmr-bundle
    """
    from dsmr_export import schedule as schedules
    from dsmr_export import tables

    opened = open_bundle(bundle)
    manifest = opened.manifest
    if as_json:
        print_json({"path": str(opened.path), **manifest.to_json()})
        return
    out, model = stdout(), manifest.model
    out.print(f"{manifest.name}  {opened.path}", soft_wrap=True)
    out.print(
        f"{model.layers} layers, d_model {model.d_model}, {model.heads} heads over {model.kv_heads} kv heads "
        f"of {model.head_dim}; {model.vocab_size} tokens",
        soft_wrap=True,
    )
    horizons = schedules.compact(manifest.schedule.horizons)
    out.print(
        f"schedule {manifest.schedule.name}: {horizons} = {manifest.schedule.budget_tokens:,} tokens",
        soft_wrap=True,
    )
    data, licence = (manifest.provenance.get(key, "unknown") for key in ("data", "licence"))
    out.print(f"data: {data}; licence {licence}", soft_wrap=True)
    out.print(tables.graph_table(manifest))


def _pieces_on_device(bundle: Bundle, data_path: Path, split: str | None, limit: int | None) -> list[Any]:
    """Through the runtime's own MIDI reader and encoder; what cannot be read is named and left out."""
    from dsmr_export import corpus, parity

    return parity.read_pieces(
        bundle,
        corpus.pieces(data_path, split or corpus.default_split(data_path), limit),
        lambda text: click.echo(text, err=True),
    )


def _with_bar(
    bundle: Bundle,
    pieces: list[Any],
    network: Any,
    graphs: list[str],
    threads: int | None,
    seed: int,
) -> dict[str, Any]:
    from dsmr_export import parity

    streams = 2 * len(graphs) + (network is not None)
    with counter("checking", streams * sum(len(ids) - 1 for ids in pieces)) as progress:
        return parity.check(bundle, pieces, network, graphs, threads=threads, seed=seed, progress=progress)


def export_main() -> None:
    """The `dsmr-export` program."""
    main(args=["export", *sys.argv[1:]], prog_name="dsmr")


def train_main() -> None:
    """`python -m dsmr_export.model.train`, for torchrun."""
    main(args=["train", *sys.argv[1:]], prog_name="dsmr")


if __name__ == "__main__":
    main()
