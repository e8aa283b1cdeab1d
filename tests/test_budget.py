"""What a bundle needs: estimated sizes against real files and a real process, and refusals that say what
fits."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from dsmr_export.errors import DsmrError, ScheduleError, TargetError
from dsmr_export.manifest import ModelShape
from dsmr_export.options import BYTES
from dsmr_export.runtime import Bundle
from dsmr_export.runtime.bundle import default_path
from dsmr_export.state import fused_state, state_bytes
from dsmr_export.targets import loader
from tests import scripts

pytest.importorskip("onnxscript", reason="needs the export extra")
from dsmr_export import budget, cli, export, pack, quantize
from dsmr_export.schedule import build

ROOT = Path(__file__).resolve().parent.parent
BUNDLED = ModelShape(8, 4, 2, 32, 160, 640, 311, 10_000.0)
HORIZONS = (1664, 1664, *[128] * 6)
"""The bundled checkpoint's shape and schedule (model/default/config.json)."""
LARGE = ModelShape(8, 8, 8, 64, 512, 2048, 311, 10_000.0)


def recipe(target: str, name: str, state: str = "float32") -> quantize.GraphRecipe:
    return quantize.GraphRecipe(loader.load(target).recipe(name), state)


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from dsmr_export.model import checkpoint

    path = tmp_path_factory.mktemp("bundled") / "model.onnx"
    export.export_graph(checkpoint.load().network(), "fused", path)
    return path


@pytest.mark.parametrize(
    ("target", "name"),
    [("generic", "fp32"), ("generic", "int8"), ("raspberry-pi-5", "int8"), ("raspberry-pi-5", "int4")],
)
def test_files_are_as_large_as_estimated(fp32: Path, tmp_path: Path, target: str, name: str) -> None:
    profile, path = loader.load(target), fp32
    used = None
    if name != "fp32":
        used = recipe(target, name)
        quantize.quantize(fp32, path := tmp_path / "q.onnx", used.weights)
    found = budget.needs(BUNDLED, HORIZONS, name, used, profile)
    assert found.file == pytest.approx(path.stat().st_size, rel=0.02)


@pytest.mark.parametrize("state", ["float32", "int8"])
def test_state_is_counted_as_the_graph_allocates_it(state: str) -> None:
    found = budget.needs(BUNDLED, HORIZONS, "int8", recipe("generic", "int8", state), loader.load("generic"))
    assert found.state == state_bytes(fused_state(HORIZONS, 2, 32, state))
    rows = sum(horizon + 1 for horizon in HORIZONS)  # what a query attends to, itself included
    assert found.state_read == rows * 2 * 2 * 32 * (4 if state == "float32" else 1)


def test_a_token_reads_every_matrix_once_and_one_row_of_the_embedding() -> None:
    found = budget.needs(BUNDLED, HORIZONS, "fp32", None, loader.load("generic"))
    heads, parameters = 4 * 32, 8 * (160 * 256 + 128 * 160 + 2 * 160 * 640) + 160 * 311
    assert found.weights_read == 4 * (parameters + 160 + 17 * 160) and heads == 128


@pytest.mark.parametrize("flash", [True, False])
def test_a_process_takes_what_was_estimated(flash: bool) -> None:
    """Of the prebuilt bundle (target generic, so the estimate is for the kernel without flash): never more
    than estimated by a tenth, and at least half of it. x86-64's onnxruntime; ARM's is of the same size."""
    measured, bundle = scripts.load("measure_memory"), Bundle.open()
    estimate = measured.estimate(bundle.manifest, "int8").memory
    environment = {} if flash else {"ORT_GQA_DISABLE_FLASH_ATTENTION": "1"}
    assert estimate / 2 < measured.peak(default_path(), "int8", environment) < estimate * 1.1


# --- what does not fit ---


def small(memory_mb: int, name: str = "raspberry-pi-5") -> loader.Target:
    target = loader.load(name)
    return replace(target, name="small", memory=replace(target.memory, for_us_mb=memory_mb))


def test_what_does_not_fit_is_refused_with_the_numbers_and_what_would_fit() -> None:
    target = small(200)
    found = budget.needs(LARGE, (16384, 16384, *[256] * 6), "fp32", None, target)
    with pytest.raises(TargetError) as caught:
        budget.require(found, LARGE, target)
    text = str(caught.value)
    assert re.match(
        r"small: fp32 needs about [\d,]+ of 200 MB \(Python and onnxruntime [\d.]+, weights", text
    )
    assert "it does not fit; what would fit: --quantize int8 --schedule two_scale --budget " in text
    offers = re.findall(
        r"--quantize (int\d)( --quantize-state int8)? --schedule two_scale --budget (\d+)", text
    )
    assert len(offers) == 4
    for name, state, tokens in offers:
        used = recipe("raspberry-pi-5", name, "int8" if state else "float32")
        for more, fits in ((0, True), (100, False)):
            horizons = build("two_scale", LARGE.layers, int(tokens) + more).horizons
            assert budget.fits(budget.needs(LARGE, horizons, name, used, target), target) == fits


def test_only_what_would_run_is_offered_and_states_by_their_option() -> None:
    """generic's int4 is for some of its CPUs only; an x86 profile's own state is int8."""
    horizons = (16384, 16384, *[256] * 6)
    generic = small(240, "generic")
    with pytest.raises(TargetError) as caught:
        budget.require(budget.needs(LARGE, horizons, "fp32", None, generic), LARGE, generic)
    assert "--quantize int8" in str(caught.value) and "int4" not in str(caught.value)
    x86 = small(300, "x86-64-avx2")
    with pytest.raises(TargetError) as caught:
        budget.require(budget.needs(LARGE, (65536,) * 8, "fp32", None, x86), LARGE, x86)
    offers = str(caught.value).split("what would fit: ")[1].split("; or ")
    assert [re.sub(r" --schedule.*", "", offer) for offer in offers] == [
        "--quantize int8 --quantize-state none",
        "--quantize int8",
        "--quantize int4 --quantize-state none",
        "--quantize int4",
    ]


def test_a_fallback_that_does_not_fit_is_a_note(tmp_path: Path) -> None:
    text = (ROOT / "targets" / "raspberry-pi-5.toml").read_text(encoding="utf-8")
    path, request = tmp_path / "mine.toml", pack.Request(tmp_path / "b", quantize=("int8",))
    needs = pack.prepare(replace(request, target="raspberry-pi-5")).needs
    between = -(-needs.memory // budget.MB)
    text = re.sub(r"for_us_mb = \d+", f"for_us_mb = {between}", text)
    path.write_text(text.replace('name = "raspberry-pi-5"', 'name = "mine"'), encoding="utf-8")
    [note] = pack.prepare(replace(request, target=str(path))).notes()
    assert re.match(r"fp32 would need about \d+ MB there, so a device cannot fall back to it", note)


def test_nothing_that_fits_is_said_too() -> None:
    target = small(60)
    found = budget.needs(LARGE, (2048, 2048, *[256] * 6), "int8", recipe("generic", "int8"), target)
    with pytest.raises(TargetError, match="take a smaller model or a larger target"):
        budget.require(found, LARGE, target)


@given(st.integers(40_000, 50_000_000), st.sampled_from(["float32", "int8"]))
def test_budget_bytes_gives_the_largest_two_scale_inside(limit: int, state: str) -> None:
    def size(tokens: int) -> int:
        return state_bytes(fused_state(build("two_scale", 8, tokens).horizons, 2, 32, state))

    least = size(64 * 8)
    if limit < least:
        with pytest.raises(ScheduleError, match=f"--budget-bytes {limit:,} is too small: .* take {least:,}"):
            budget.largest_two_scale(BUNDLED, limit, state)
        return
    found = budget.largest_two_scale(BUNDLED, limit, state)
    assert found.name == "two_scale" and size(found.budget_tokens) <= limit
    assert (
        size(found.budget_tokens + 2 * BUNDLED.layers) > limit
    )  # horizons are rounded down by up to a token


@pytest.mark.parametrize(
    ("text", "size"),
    [("2000000", 2_000_000), ("2MB", 2_000_000), ("2 MiB", 2_097_152), ("1.5k", 1500), ("1GiB", 2**30)],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert BYTES.convert(text, None, None) == size


# --- the command ---


def dsmr(*arguments: object) -> Any:
    return CliRunner().invoke(cli.main, ["export", *map(str, arguments)])


def test_a_dry_run_says_it_and_writes_nothing(tmp_path: Path) -> None:
    output = tmp_path / "b"
    result = dsmr("--target", "raspberry-pi-zero-2w", "--dry-run", "-o", output)
    assert result.exit_code == 0 and not output.exists()
    assert "raspberry-pi-zero-2w: int8 needs about" in result.output and "an estimate" in result.output
    found = json.loads(dsmr("--target", "raspberry-pi-5", "--dry-run", "--json", "-o", output).stdout)
    assert found["graph"] == "int8" and found["fits"] and found["memory"] < found["for_us"]
    budgets = [row["budget_tokens"] for row in found["alternatives"]]
    assert budgets == sorted(budgets) and len(budgets) == 5
    reads = [row["read"] for row in found["alternatives"]]
    speeds = [row["tokens_per_s_estimate"] for row in found["alternatives"]]
    assert reads == sorted(reads) and speeds == sorted(speeds, reverse=True)


def test_an_export_that_does_not_fit_exits_1_and_leaves_nothing(tmp_path: Path) -> None:
    text = (ROOT / "targets" / "raspberry-pi-5.toml").read_text(encoding="utf-8")
    path = tmp_path / "tiny.toml"
    text = re.sub(r"for_us_mb = \d+", "for_us_mb = 40", text).replace(
        'name = "raspberry-pi-5"', 'name = "tiny"'
    )
    path.write_text(text, encoding="utf-8")
    for more in ((), ("--dry-run",)):
        result = dsmr("--target", path, "-o", tmp_path / "b", *more)
        assert result.exit_code == 1 and "it does not fit" in result.output
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.toml"]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--budget-bytes", "plenty"), 2, "'plenty' is not a size"),
        (("--budget-bytes", "0"), 2, "'0' is not a size"),
        (("--budget-bytes", "1kB"), 1, "--budget-bytes 1,000 is too small"),
        (("--budget-bytes", "2MB", "--budget", "4096"), 1, "leave --budget and any other --schedule out"),
        (
            ("--budget-bytes", "2MB", "--schedule", "uniform"),
            1,
            "leave --budget and any other --schedule out",
        ),
        (("--quantize", "none", "--quantize-state", "int8"), 1, "goes with quantized weights"),
        (("--target", "raspberry-pi-4", "--quantize", "int4"), 1, "refuses int4"),
    ],
)
def test_what_makes_no_sense_is_refused(
    tmp_path: Path, options: tuple[str, ...], code: int, message: str
) -> None:
    result = dsmr(*options, "-o", tmp_path / "b")
    assert (result.exit_code, result.exception is None or isinstance(result.exception, SystemExit)) == (
        code,
        True,
    )
    assert message in " ".join(result.output.split()) and not (tmp_path / "b").exists()


def test_auto_takes_this_machines_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = replace(
        pack.cpu.read(),
        architecture="aarch64",
        model="Raspberry Pi 4 Model B Rev 1.5",
        features=frozenset({"asimd"}),
    )
    monkeypatch.setattr(pack.cpu, "read", lambda: machine)
    assert pack.prepare(pack.Request(Path("b"), target="auto")).target.name == "raspberry-pi-4"
    with pytest.raises(DsmrError, match="refuses int4"):
        pack.prepare(pack.Request(Path("b"), target="auto", quantize=("int4",)))
