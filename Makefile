# What CI runs (.ci/run), one target each. VENV is where `make install` puts everything.
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
PYTHON ?= python3

.PHONY: all install lint web-lint types test test-slow wheel wheel-check lock default-checkpoint default-bundle figures clean

all: lint web-lint types test test-slow wheel-check

install:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -c constraints.txt -e '.[dev]'

lint:
	$(BIN)/ruff check .

# The page's own checks: TypeScript's types, biome's style; with the Node.js that `dsmr web` would build it with.
NPM := $(BIN)/python -m dsmr_export.web.node npm
web-lint:
	cd examples/web && $(NPM) ci --ignore-scripts --no-audit --no-fund --loglevel=error && $(NPM) run --silent check

# mypy does not follow the finder of an editable install, so it reads the wheel's own content.
types: wheel
	rm -rf build/types
	$(BIN)/pip install --quiet --no-deps --target build/types dist/*.whl
	cd build/types && $(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p dsmr_export

test:
	$(BIN)/pytest

test-slow:
	$(BIN)/pytest -m slow

# build/ is removed first: setuptools would pack files there that the tree no longer has.
wheel:
	rm -rf build dist
	$(BIN)/python -m build --wheel --quiet

# The wheel in a clean environment with the base install only: what a device gets.
wheel-check: wheel
	scripts/try_wheel.sh dist/*.whl

# A new constraints.txt from a fresh environment; the three versions that figures were taken with stay.
lock:
	scripts/lock.sh

# What a release makes: the bundled checkpoint from a training run (RUN=folder), the prebuilt bundle from the checkpoint.
default-checkpoint:
	$(BIN)/python scripts/make_default_checkpoint.py $(RUN)

default-bundle:
	$(BIN)/python scripts/make_default_bundle.py

# The pictures of README.md.
figures:
	$(BIN)/python docs/draw_state_flow.py

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
