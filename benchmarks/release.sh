#!/usr/bin/env bash
# What a release is measured by: the 25 M parameter model of random weights, exported for this machine's CPU,
# beside every peer that is installed, and its growth. About an hour on two cores that should do nothing else.
#
#   benchmarks/release.sh [FOLDER]        FOLDER: where model and bundle are made  [default: a temporary one]
#
# Writes benchmarks/results/VERSION.json (one object), VERSION.txt (the tables), and the same of growth with pictures:
# VERSION-growth.json, VERSION-growth.txt, VERSION-growth-*.svg.
set -euo pipefail
cd "$(dirname "$0")/.."
work=${1:-$(mktemp -d)}
version=$(python -c 'import dsmr_export; print(dsmr_export.__version__)')
results=benchmarks/results
mkdir -p "$results"
[ -d "$work/25m" ] || python -m scripts.make_25m_checkpoint "$work/25m"
[ -d "$work/bundle" ] ||
    dsmr-export --checkpoint "$work/25m" --target auto --quantize int8,int4 --no-gate --output "$work/bundle"
# bench NAME OPTIONS: the last line of stdout is the JSON object, the lines before it are the tables.
bench() {
    local name=$1
    shift
    dsmr bench "$work/bundle" --checkpoint "$work/25m" --threads 1 --graph int8 --graph fp32 "$@" >"$work/$name.out"
    tail -n 1 "$work/$name.out" | python -m json.tool --indent 1 >"$results/$name.json"
    head -n -1 "$work/$name.out" | sed 's/ *$//' >"$results/$name.txt"
}
bench "$version" --graph int4 --peers all --steps 600
bench "$version-growth" --peers none --growth all --plots "$work/plots"
for plot in "$work"/plots/*.svg; do cp "$plot" "$results/$version-$(basename "$plot")"; done
printf 'written: %s\n' "$results/$version"*
