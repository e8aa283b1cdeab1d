#!/usr/bin/env bash
# Writes constraints.txt: the newest versions that go together, in a fresh environment with every extra.
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 onnxruntime==1.31.1 optimum-onnx==0.1.0 '.[dev,bench]'
{
    sed -n '/^#/p' constraints.txt
    # No local suffix (+cpu): a constraint without one fits both builds of torch.
    "$work/venv/bin/pip" freeze --all --exclude pip --exclude dsmr-export | sed 's/+[a-z0-9.]*$//'
} >"$work/constraints.txt"
mv "$work/constraints.txt" constraints.txt
