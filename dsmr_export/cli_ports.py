"""`dsmr ports`: the MIDI ports of this machine."""

from __future__ import annotations

import click

from dsmr_export.options import json_option
from dsmr_export.terminal import print_json, stdout


@click.command()
@json_option
def ports(as_json: bool) -> None:
    """List the MIDI ports that can be listened to (inputs) and played on (outputs).

    They are ALSA's, or JACK's where there is no ALSA sequencer and a JACK server runs. A part of a name is
    enough to name a port, as long as no other has it.

    \b
    Example:
      dsmr ports
      dsmr ports --json
    """
    from dsmr_export.runtime.live.ports import list_ports

    found = list_ports()
    directions = {"inputs": found.inputs, "outputs": found.outputs}
    if as_json:
        print_json({"api": found.api, **directions})
        return
    out = stdout()
    for direction, names in directions.items():
        out.print(f"{direction} ({found.api.name})", style="bold", soft_wrap=True)
        for name in names or ("none",):
            out.print(f"  {name}", soft_wrap=True)
