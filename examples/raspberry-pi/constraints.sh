#!/usr/bin/env bash
# Writes the constraints-….txt beside it: the base install as aarch64 wheels or pure Python, for the Pythons
# of 64-bit Raspberry Pi OS. Runs on any machine, nothing is installed: pip resolves for the other platform.
# Usage: constraints.sh [FOLDER]   (default: this one)
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$(dirname "$here")")
folder=${1:-$here}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The base requirements; markers are not looked at, there are none.
mapfile -t base < <(python3 - "$root/pyproject.toml" <<'PY'
import sys, tomllib

with open(sys.argv[1], "rb") as file:
    print(*tomllib.load(file)["project"]["dependencies"], sep="\n")
PY
)

# resolve PYTHON GLIBC_MINOR PIP-ARGUMENT…: writes report.json; glibc 2.N runs wheels made for any older one.
resolve() {
    local version=$1 glibc=$2 platforms=(--platform manylinux2014_aarch64) minor
    shift 2
    for ((minor = 17; minor <= glibc; minor++)); do
        platforms+=(--platform "manylinux_2_${minor}_aarch64")
    done
    python3 -m pip install --dry-run --quiet --ignore-installed --target "$work/target" --only-binary=:all: \
        "${platforms[@]}" --implementation cp --python-version "$version" --report "$work/report.json" "$@"
}

# write NAME PYTHON GLIBC_MINOR SYSTEM
write() {
    local file="$folder/constraints-$1.txt"
    if ! resolve "$2" "$3" --constraint "$root/constraints.txt" "${base[@]}"; then
        printf '%s: not with the versions of constraints.txt, so the newest that have wheels\n' "$1" >&2
        resolve "$2" "$3" "${base[@]}"
    fi
    {
        printf '# The base install on %s: Python %s, glibc 2.%s,\n' "$4" "$2" "$3"
        printf '# as aarch64 wheels or pure Python. Made by constraints.sh beside it: what pip resolves for that\n'
        printf '# platform, at the versions of constraints.txt at the root where there are wheels of them.\n'
        python3 - "$work/report.json" <<'PY'
import json, sys

with open(sys.argv[1], encoding="utf-8") as file:
    packages = [entry["metadata"] for entry in json.load(file)["install"]]
for package in sorted(packages, key=lambda package: package["name"].lower()):
    print(f"{package['name']}=={package['version']}")
PY
    } >"$work/constraints.txt"
    mv "$work/constraints.txt" "$file"
    printf '%s\n' "$file"
}

write bookworm-py311 3.11 36 '64-bit Raspberry Pi OS bookworm (Debian 12)'
write trixie-py313 3.13 41 '64-bit Raspberry Pi OS trixie (Debian 13)'
