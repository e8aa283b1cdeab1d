"""`dsmr doctor`: what this machine has and lacks for playing a bundle."""

from __future__ import annotations

from pathlib import Path

import click

from dsmr_export.options import bundle_argument, json_option
from dsmr_export.terminal import print_json, stdout


@click.command()
@bundle_argument
@json_option
def doctor(bundle: Path | None, as_json: bool) -> None:
    """Say what this machine has and lacks for playing a bundle, and what fixes it.

    The bundle's golden vectors run, and the graph that would be played is named with the reason. Lines are
    marked ok, missing (optional, or a graph for other machines) or problem. Exits with 1 only if the bundle
    cannot be played at all.

    \b
    Example:
      dsmr doctor
      dsmr doctor dsmr-bundle --json
    """
    from dsmr_export.doctor import examine, render

    diagnosis = examine(bundle)
    if as_json:
        print_json(diagnosis.to_json())
    else:
        render(diagnosis, stdout())
    if not diagnosis.playable:
        raise click.ClickException("this bundle cannot be played on this machine: see the problems above")
