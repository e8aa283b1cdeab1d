"""Makes the prebuilt bundle that the package ships, dsmr_export/assets/default/: int8 alone.

    python scripts/make_default_bundle.py          (make default-bundle)

tests/test_default_bundle.py compares it with a fresh export.
"""

from __future__ import annotations

import click

from dsmr_export import pack
from dsmr_export.runtime.bundle import default_path

REQUEST = pack.Request(
    output=default_path(),
    schedule="two_scale",
    quantize=("int8",),
    keep=("int8",),
    name="dsmr-default",
    force=True,
    command="make default-bundle",
)


@click.command(help=__doc__)
def main() -> None:
    packed = pack.pack(REQUEST, click.echo)
    for name, figures in packed.parity["graphs"].items():
        click.echo(
            f"{name}: perplexity {figures['perplexity']:.4f}, change {figures['relative_change']:+.1e}"
        )
    click.echo(f"{packed.path}: {sum(f.stat().st_size for f in packed.path.iterdir()):,} bytes")


if __name__ == "__main__":
    main()
