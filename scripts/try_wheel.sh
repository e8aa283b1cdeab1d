#!/usr/bin/env bash
# Tries a wheel as a device gets it: a clean environment, the base install only, away from the source tree.
# Usage: scripts/try_wheel.sh dist/dsmr_export-VERSION-py3-none-any.whl
set -euo pipefail

wheel=$(realpath "$1")
root=$(realpath "$(dirname "$0")/..")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

say() { printf '\n== %s\n' "$*"; }
die() {
    printf 'try_wheel: %s\n' "$*" >&2
    exit 1
}

say "the wheel's content"
python3 - "$wheel" <<'PY'
import sys, zipfile

names = zipfile.ZipFile(sys.argv[1]).namelist()
tops = {name.split("/")[0] for name in names}
stray = {top for top in tops if top != "dsmr_export" and not top.endswith(".dist-info")}
assert not stray, f"the wheel would put {stray} into site-packages"
needed = [
    "dsmr_export/py.typed",
    "dsmr_export/targets/generic.toml",
    "dsmr_export/model/default/model.safetensors",
    "dsmr_export/assets/default/manifest.json",
    "dsmr_export/assets/default/SHA256SUMS",
    "dsmr_export/web/page/index.html",
    "dsmr_export/web/page/package-lock.json",
    "dsmr_export/web/page/src/host/index.ts",
]
missing = [name for name in needed if name not in names]
assert not missing, f"the wheel lacks {missing}"
own = tuple(f"dsmr_export/web/page/{folder}/" for folder in ("node_modules", "dist"))
built = [name for name in names if name.startswith(own)]
assert not built, f"the wheel carries what is built or fetched on the user's machine: {built[:3]}"
assert any(name.endswith("licenses/LICENSE") for name in names), "the wheel lacks LICENSE"
assert any(name.endswith("licenses/NOTICE") for name in names), "the wheel lacks NOTICE"
print(f"{len(names)} files, all under dsmr_export/")
PY

say "base install in a clean environment"
python3 -m venv venv
venv/bin/pip install --quiet -c "$root/constraints.txt" "$wheel"
for package in torch miditok onnx safetensors; do
    if venv/bin/python -c "import $package" 2>/dev/null; then die "the base install brought $package"; fi
done
venv/bin/pip list --format=freeze

say "dsmr --help"
venv/bin/dsmr --help
say "dsmr info"
venv/bin/dsmr info
say "dsmr check (golden vectors of the prebuilt bundle)"
venv/bin/dsmr check

say "dsmr play"
venv/bin/python - <<'PY'
from pathlib import Path

from dsmr_export import corpus

piece = corpus.pieces(None, split="test")[0]
Path("prompt.mid").write_bytes(piece.read())
print("prompt:", piece.name)
PY
venv/bin/dsmr play --prompt prompt.mid --save first.mid --seconds 10 --seed 1
venv/bin/dsmr play --prompt prompt.mid --save second.mid --seconds 10 --seed 1
cmp first.mid second.mid || die "the same seed gave two files"
venv/bin/python - <<'PY'
import mido

file, sounding, struck = mido.MidiFile("first.mid"), {}, 0
for message in file:
    if message.type == "note_on" and message.velocity:
        sounding[message.note] = sounding.get(message.note, 0) + 1
        struck += 1
    elif message.type in ("note_on", "note_off"):
        sounding[message.note] -= 1
assert struck, "nothing was played"
assert not any(sounding.values()), f"left sounding: {sounding}"
assert file.length <= 10.5, f"{file.length:.1f} s instead of 10"
print(f"{struck} notes in {file.length:.1f} s, every one of them ended")
PY

say "dsmr web says what to install where there is no Node.js, and finds the page's sources"
mkdir no-node
if PATH=$PWD/no-node XDG_CACHE_HOME=$PWD/cache venv/bin/dsmr web --out site 2>err.txt; then
    die "dsmr web built a page without Node.js"
fi
cat err.txt
grep -q "dsmr-export\[web\]" err.txt || die "the message does not name the extra to install"
[ ! -e site ] || die "a refused dsmr web left a folder"
[ -f "$(venv/bin/python -c 'from dsmr_export.web import build; print(build.sources())')/package-lock.json" ] ||
    die "the sources of the page are not there"

say "dsmr-export without torch says what to install"
if venv/bin/dsmr-export --output bundle >out.txt 2>err.txt; then die "dsmr-export ran without torch"; fi
cat err.txt
if grep -q Traceback err.txt; then die "a traceback instead of one line"; fi
grep -q "export" err.txt || die "the message does not name the extra to install"
[ ! -e bundle ] || die "a refused export left a folder"

say "the wheel works with the base install only"
