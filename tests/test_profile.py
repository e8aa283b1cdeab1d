"""What a step costs: arithmetic by torch's own counter, bytes by the state, processes by running them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dsmr_export.cli import main
from dsmr_export.errors import ScheduleError, TrainingError
from dsmr_export.model import profile
from dsmr_export.model import tokenizer as tokens
from dsmr_export.model.config import ModelConfig
from dsmr_export.model.network import DSMR
from dsmr_export.model.profile import Flops
from dsmr_export.model.train_config import TrainConfig
from dsmr_export.state import portable_state, state_bytes

TINY = TrainConfig(
    steps=1,
    schedule="40,3",
    budget=43,
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=16,
    d_model=16,
    d_ff=24,
    lanes=2,
    segment=16,
)
VOCABULARY = len(tokens.default_tokenizer())


def dsmr(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


# What follows from the config


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_arithmetic_is_what_torch_counts(kv_heads: int) -> None:
    """One token after a full state: no key is computed in vain, so the formula must be exact."""
    shape = ModelConfig(3, 4, kv_heads, 16, d_model=48, d_ff=80, vocab_size=29)
    horizons = (7, 50, 1)
    network = DSMR(shape, horizons)
    state = network.empty_state()
    state.length += 100
    # the counter knows no fused attention kernel of the CPU
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        logits, _ = network(torch.tensor([[3]]), state)
        logits.sum().backward()
    flops = Flops.of(shape, horizons)
    assert flops.total == counter.get_total_flops()
    assert flops.attention == 12 * 4 * 16 * (8 + 51 + 2)
    assert flops.parameters == sum(p.numel() for p in network.parameters() if p.dim() > 1)


def test_a_full_state_of_random_tokens() -> None:
    """Every row is real, and stays so; the step is the trainer's."""
    steps = profile.RandomSteps(TINY, torch.device("cpu"))
    state = steps.state
    assert all(bool(t.any(-1).all()) for pair in state.layers for t in pair)
    assert state.length.tolist() == [40, 40]
    row = steps.step()
    assert row["loss"] == pytest.approx(math.log(VOCABULARY), abs=0.5)
    assert steps.state.length.tolist() == [56, 56]
    assert not any(path.name == "last" for path in steps.out.iterdir())


def test_what_stands_beside_by_default() -> None:
    assert profile.default_beside(TINY) == "full:cap=40,floor=40"
    assert profile.default_beside(replace(TINY, schedule="90,3", budget=93)) == "full:cap=90"
    assert profile.default_beside(replace(TINY, schedule="40,40", budget=80)) == "full:cap=80"
    for text in ("full:cap=40,floor=40", "full:cap=99"):
        assert profile.beside(TINY, text).budget == profile.beside(TINY, text).layers * int(text[9:11])
    assert profile.beside(replace(TINY, budget=900), "full:cap=99").budget == 900
    shared = profile.beside(replace(TINY, budget=200), "full")
    assert shared.schedule == "full:cap=100" and shared.budget == 200
    with pytest.raises(ScheduleError, match="did you mean full"):
        profile.beside(TINY, "fulll")


def test_the_saving_in_words() -> None:
    own = {
        "error": None,
        "lanes": 4,
        "all_state_bytes": 10_000_000,
        "peak_bytes": 300_000_000,
        "base_bytes": 200_000_000,
        "flops_per_token": 100,
        "ratio": 1.0,
    }
    row = {**own, "all_state_bytes": 30_000_000, "peak_bytes": 365_000_000, "base_bytes": 205_000_000}
    row |= {"flops_per_token": 150, "ratio": 0.5}
    assert profile.explain({"a": own, "b": row}) == [
        "b against a: +20.00 MB of keys and values in 4 lanes, +60.00 MB at the peak, 3.0 times that; "
        "1.50 times the arithmetic of a token, 2.00 times the time"
    ]
    assert profile.explain({"a": own, "b": {**row, "error": "out of memory"}}) == []


# Processes


def test_two_schedules_side_by_side() -> None:
    told: list[tuple[int, int]] = []
    configs = {"short": TINY, "long": profile.beside(TINY, "full:cap=4000")}
    rows = profile.compare(configs, rounds=2, steps=1, progress=lambda *done: told.append(done))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert list(rows) == ["short", "long"]
    for row, horizons in ((rows["short"], (40, 3)), (rows["long"], (4000, 4000))):
        assert row["error"] is None and row["precision"] == "fp32"
        assert row["state_bytes"] == state_bytes(portable_state(horizons, 1, 16))
        assert row["all_state_bytes"] == 2 * row["state_bytes"]
        assert row["tokens_per_s"] > 0 and 0 < row["mfu"] < 1
        assert row["mfu"] == pytest.approx(row["tokens_per_s"] * row["flops_per_token"] / row["peak_flops"])
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
    assert rows["short"]["ratio"] == 1
    # 600 times the keys: far from noise in memory. Not in time, which is whatever else the machine does.
    taken = [row["peak_bytes"] - row["base_bytes"] for row in rows.values()]
    assert taken[1] - taken[0] > rows["long"]["all_state_bytes"] - rows["short"]["all_state_bytes"]
    network = DSMR(ModelConfig(2, 2, 1, 16, 16, 24, VOCABULARY), (40, 3))
    assert rows["short"]["parameters"] == sum(p.numel() for p in network.parameters())


def test_a_schedule_that_does_not_fit_has_a_row_without_figures() -> None:
    """Hundreds of terabytes are more than an address space: the allocator refuses at once."""
    horizon = 10**12 - 1
    configs = {"fits": replace(TINY, precision="bf16"), "huge": profile.beside(TINY, f"full:cap={horizon}")}
    rows = profile.compare(configs, rounds=1, steps=1)
    fits = rows["fits"]
    assert fits["error"] is None and fits["tokens_per_s"] > 0 and fits["precision"] == "bf16"
    assert fits["state_bytes"] == 43 * 2 * 16 * 2  # half of what fp32 keeps
    assert rows["huge"]["error"].startswith("out of memory (")
    assert rows["huge"]["tokens_per_s"] is None and rows["huge"]["ratio"] is None
    assert rows["huge"]["state_bytes"] == 2 * horizon * 128


def test_rounds_are_counted_from_one() -> None:
    with pytest.raises(TrainingError, match="rounds and steps must be 1 or more, got 0 and 2"):
        profile.compare({"a": TINY}, rounds=0)


# Command line

SIZES = "--layers 2 --heads 2 --kv-heads 1 --head-dim 16 --d-model 16 --d-ff 24 --lanes 2 --segment 16"


def one_profile(*more: str) -> Result:
    return dsmr(
        "train", "--profile", "--schedule", "40,3", "--budget", "43", *SIZES.split(), "--device", "cpu", *more
    )


def test_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "compare", lambda configs, device, progress: ROWS)
    said = one_profile("--beside", "full:cap=90", "--beside", "two_scale:floor=1")
    assert said.exit_code == 0, said.output
    lines = said.stdout.splitlines()
    assert max(map(len, lines[:8])) <= 110
    assert lines[0].startswith("5,000,000 parameters; 2 lanes × 16 tokens a step, fp32; state full; 7 rounds")
    cells = " ".join(next(line for line in lines if line.startswith(" full:cap=90")).split())
    assert cells == "full:cap=90 180 0.50 1.00 2.0 9.0 1,000 0.91 (0.80–1.20) 31% 350"
    assert "two_scale:floor=1: out of memory (no room)" in lines
    assert "MFU: of 29 GFLOP/s" in said.stdout


def test_one_json_object(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def compare(configs: dict[str, TrainConfig], device: str, progress: object) -> dict[str, Any]:
        asked.extend(configs)
        return ROWS

    monkeypatch.setattr(profile, "compare", compare)
    said = one_profile("--json")
    assert said.exit_code == 0, said.output
    found: dict[str, Any] = json.loads(said.stdout)
    assert asked == ["40,3", "full:cap=40,floor=40"]
    assert found["schedules"] == ROWS and len(found["explanation"]) == 1
    assert found["threads"] == torch.get_num_threads() and found["device"] == "cpu"
    assert (found["rounds"], found["steps"], found["segment"]) == (profile.ROUNDS, profile.STEPS, 16)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--beside", "full"), 2, "--beside goes with --profile"),
        (("--json", "--out", "run"), 2, "--json goes with --profile"),
        (("--steps", "3"), 2, "Missing option '--out'"),
        (("--profile", "--beside", "fulll"), 1, "unknown schedule 'fulll' (did you mean full?)"),
        (("--profile", "--device", "toaster"), 1, "--device toaster cannot be used here"),
    ],
)
def test_what_cannot_be_asked(arguments: tuple[str, ...], code: int, message: str) -> None:
    said = dsmr("train", *arguments)
    assert said.exit_code == code
    assert message in said.stderr and "Traceback" not in said.stderr


def test_not_under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = one_profile()
    assert said.exit_code == 1 and "run it without torchrun" in said.stderr


def _row(**changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "schedule": "full:cap=90",
        "parameters": 5_000_000,
        "budget_tokens": 180,
        "lanes": 2,
        "precision": "fp32",
        "state_bytes": 500_000,
        "all_state_bytes": 1_000_000,
        "attention_flops_per_token": 2_000_000,
        "flops_per_token": 9_000_000,
        "tokens_per_s": 1000.4,
        "ratio": 0.91,
        "ratio_low": 0.8,
        "ratio_high": 1.2,
        "mfu": 0.3108,
        "peak_flops": 28.95e9,
        "peak_bytes": 350_000_000,
        "base_bytes": 240_000_000,
        "error": None,
    }
    return {**row, **changes}


ROWS = {
    "40,3": _row(all_state_bytes=500_000, ratio=1.0, ratio_low=1.0, ratio_high=1.0),
    "full:cap=90": _row(),
    "two_scale:floor=1": _row(error="out of memory (no room)", tokens_per_s=None, ratio=None),
}
