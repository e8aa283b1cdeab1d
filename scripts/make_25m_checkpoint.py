"""Writes a checkpoint of 25 M parameters with random weights, on which speed is measured.

    python -m scripts.make_25m_checkpoint FOLDER

8 layers, d_model 512, horizons 2048x2,256x6 (tests/arm/models.py). Random weights quantize worse than trained
ones: export it with --no-gate.
"""

from __future__ import annotations

from pathlib import Path

import click

from dsmr_export import schedule as schedules
from dsmr_export.model import checkpoint, tokenizer
from tests.arm import models


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(path_type=Path))
def main(folder: Path) -> None:
    text = tokenizer.to_json(tokenizer.default_tokenizer())
    schedule = schedules.explicit(models.HORIZONS_25M)
    about = {"data": "none: random weights", "licence": "none"}
    checkpoint.save(folder, models.network("25m"), schedule, text, about=about)
    click.echo(f"{folder}: {schedules.describe(schedule)}")


if __name__ == "__main__":
    main()
