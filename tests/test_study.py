"""A study end to end on made-up pieces: equal bytes, means and spreads, and going on after anything."""

from __future__ import annotations

import csv
import json
import math
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest.mock import Mock, create_autospec

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch", reason="studies train in PyTorch")

import torch

from dsmr_export import figures
from dsmr_export.errors import ScheduleError, TrainingError
from dsmr_export.model import (
    checkpoint,
    data,
    history,
    profile,
    run_folder,
    study,
    study_output,
    study_plan,
    study_report,
)
from dsmr_export.model import tokenizer as tokens
from dsmr_export.model import train as training
from dsmr_export.model.evaluate import evaluate
from dsmr_export.model.study_plan import Entry, Study, default_schedules, run_state_bytes
from dsmr_export.model.train_config import TrainConfig
from dsmr_export.model.trainer import Trainer
from tests.test_cli import dsmr, one_json, refused
from tests.training_runs import TINY, options, write_scales

LIST, COMPRESSED = "15,5", "full:floor=1@kv_heads=1"
OPTIONS: dict[str, Any] = {**TINY, "kv_heads": 2, "budget": 20, "steps": 6, "save_every": 3}
del OPTIONS["schedule"]
SCHEDULES = ["--schedule", LIST, "--schedule", COMPRESSED]
ASKED = [*options(OPTIONS), *SCHEDULES, "--seeds", "0,1", "--device", "cpu"]
RUNS = ["15-5-seed0", "full-floor-1-kv_heads-1-seed0", "15-5-seed1", "full-floor-1-kv_heads-1-seed1"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scales(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """In place of `profile.compare`, with its signature: test_profile.py tests that one."""

    def figures_of(configs: Mapping[str, TrainConfig], *_: Any, **__: Any) -> dict[str, dict[str, Any]]:
        return {
            name: {
                "tokens_per_s": 1000.0 * (index + 1),
                "ratio": 1.0 + index,
                "peak_bytes": 50_000_000 + index,
                "base_bytes": 40_000_000,
                "error": None,
            }
            for index, name in enumerate(configs)
        }

    fake = create_autospec(profile.compare, side_effect=figures_of)
    monkeypatch.setattr(profile, "compare", fake)
    return fake


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that was trained and judged without interruption: copy it before changing it."""
    out = tmp_path_factory.mktemp("studies") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_output, "_draw", lambda *_: [])
        for stage in ("train", "evaluate"):
            found = dsmr("study", "--out", out, "--data", corpus, *ASKED, "--only", stage)
            assert found.exit_code == 0, found.output
    return out


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pictures, which take seconds; test_end_to_end draws them."""
    monkeypatch.setattr(study_output, "_draw", lambda *_: [])


@pytest.fixture
def copied(whole: Path, tmp_path: Path, undrawn: None) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "study"))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def tiny(**changes: Any) -> TrainConfig:
    return TrainConfig(**{**OPTIONS, **changes})


# What is compared


@given(
    budget=st.integers(256, 100_000),
    kv_heads=st.sampled_from([2, 4, 8]),
    fewer=st.sampled_from([1, 2, 4, 8]),
    layers=st.integers(1, 12),
)
def test_fewer_heads_get_the_same_bytes(budget: int, kv_heads: int, fewer: int, layers: int) -> None:
    """All that is lost is the rounding: of the budget in tokens, and of each layer's share of it."""
    base = tiny(budget=max(budget, 64 * layers * 8), heads=8, kv_heads=kv_heads, layers=layers)
    config = Entry.parse(f"full@kv_heads={fewer}").config(base, 0)
    bytes_a_token = 2 * fewer * base.head_dim * 4
    asked = base.budget * 2 * kv_heads * base.head_dim * 4
    assert asked - bytes_a_token * (layers + 1) < run_state_bytes(config) <= asked
    assert config.kv_heads == fewer and config.seed == 0


def test_the_default_schedules_cost_the_same_but_the_reference() -> None:
    base = TrainConfig(steps=1, layers=8, heads=8, kv_heads=8, budget=4096)
    plan = Study(base, tuple(map(Entry.parse, default_schedules(base))), (0, 1), ("test",))
    assert [entry.text for entry in plan.entries] == [
        *("two_scale", "uniform", "reverse_two_scale", "progressive_ascending", "progressive_descending"),
        *("perceiver_ar_like", "full@kv_heads=2", "full@kv_heads=1", "full:cap=4096"),
    ]
    *capped, reference = (run_state_bytes(entry.config(base, 0)) for entry in plan.entries)
    assert plan.budget_bytes == 4096 * 2 * 8 * 32 * 4
    assert all(0.99 * plan.budget_bytes < count <= plan.budget_bytes for count in capped)
    assert reference == 8 * plan.budget_bytes
    assert [run.name for run in plan.runs()][:2] == ["two_scale-seed0", "uniform-seed0"]
    assert [run.seed for run in plan.runs()] == [0] * 9 + [1] * 9


def test_default_schedules_that_are_the_same_are_named_once() -> None:
    base = TrainConfig(steps=1, layers=4, heads=4, kv_heads=2, budget=512)
    texts = default_schedules(base)  # one long layer of four: two_scale is perceiver_ar_like
    assert "perceiver_ar_like" not in texts and "full@kv_heads=2" not in texts and "full@kv_heads=1" in texts


@pytest.mark.parametrize("text", ["full@", "full@kv_heads=0", "full@kv_heads=x", "full@heads=1", "full@2"])
def test_what_stands_after_the_at_sign(text: str) -> None:
    with pytest.raises(TrainingError, match="after the @ stands kv_heads=K, as in full@kv_heads=1"):
        Entry.parse(text)


def test_a_study_that_cannot_be(tmp_path: Path, corpus: Path) -> None:
    def study_of(*schedules: str, **changes: Any) -> Study:
        given = {**OPTIONS, "schedules": schedules, "data": corpus, **changes}
        return study_plan.settle(tmp_path / "study", given)

    with pytest.raises(TrainingError, match="--schedule 10x2 is full:cap=10,floor=1 again, the same horizon"):
        study_of("full:cap=10,floor=1", "10x2")
    with pytest.raises(TrainingError, match="--schedule 10x2 is given twice"):
        study_of("10x2", "10x2")
    with pytest.raises(TrainingError, match="schedule 10x2@kv_heads=3: .*heads must be a multiple of kv_"):
        study_of("10x2@kv_heads=3")
    with pytest.raises(ScheduleError, match="more than the budget of 20"):
        study_of("15,6")
    with pytest.raises(TrainingError, match="give the length of every run in --steps"):
        study_of("15,5", steps=None)


# From beginning to end


def test_end_to_end(corpus: Path, tmp_path: Path, compare: Mock) -> None:
    out = tmp_path / "study"
    found = one_json(dsmr("study", "--out", out, "--data", corpus, *ASKED, "--json"))
    assert sorted(path.name for path in out.iterdir() if path.name.endswith(("seed0", "seed1"))) == sorted(
        RUNS
    )
    assert found["missing"] == found["failed"] == found["warnings"] == []
    assert [row["state_bytes"] for row in found["schedules"]] == [20 * 2 * 2 * 16 * 4] * 2
    assert not any(row["over_budget"] for row in found["schedules"])

    # the table against an evaluation of each checkpoint by other means
    pieces = data.load(corpus, "validation", tokens.default_tokenizer(), progress=False).pieces
    nats: dict[str, float] = {}
    for name in RUNS:
        network = checkpoint.load(out / name / "best").network()
        nats[name] = evaluate(network, [piece.ids for piece in pieces]).nats_per_token

    for row, names in zip(rows(out / "study.csv"), (RUNS[0::2], RUNS[1::2]), strict=True):
        first, second = (math.exp(nats[name]) for name in names)
        assert float(row["validation_perplexity_mean"]) == pytest.approx((first + second) / 2)
        assert float(row["validation_perplexity_spread"]) == pytest.approx(abs(first - second) / 2)
        differences = [nats[name] - nats[other] for name, other in zip(names, RUNS[0::2], strict=True)]
        assert float(row["validation_nats_vs_first_mean"]) == pytest.approx(fmean(differences), abs=1e-12)
        assert row["validation_krcu_mean"] == ""  # no piece is that long
    parameters = sum(p.numel() for p in network.parameters())
    assert rows(out / "study.csv")[1]["parameters"] == str(parameters)

    # runs.csv, and Markdown: the same figures
    for row in rows(out / "runs.csv"):
        assert row["state"] == "finished" and row["step"] == "6"
        assert float(row["validation_nats_per_token"]) == pytest.approx(nats[row["folder"]])
    assert len({row["tokens"] for row in rows(out / "runs.csv")}) == 1
    text = (out / "study.md").read_text()
    table = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    titles, *cells = table[:3]
    for row, line in zip(rows(out / "study.csv"), cells, strict=True):
        shown = dict(zip(titles, line, strict=True))
        mean, spread = (float(row[f"validation_perplexity_{name}"]) for name in ("mean", "spread"))
        assert shown["schedule"] == row["schedule"] and shown["horizons"] == row["horizons"]
        assert shown["perplexity, validation"] == f"{mean:.3f} ± {spread:.3f}"
        assert shown["state (fp32)"] == f"{int(row['state_bytes']):,}"
        assert shown["training tokens/s (ratio)"] == (
            f"{float(row['tokens_per_s']):,.0f} ({float(row['speed_ratio']):.2f})"
        )
        assert shown["peak memory"] == "50.00 MB"
    assert "40.00 MB were there before the network" in text
    assert "half the range of two seeds" in text and "standard deviation" not in text
    assert f"--data {corpus.name} --steps 6" in text and str(corpus.parent) not in text
    assert f"torch {torch.__version__}" in text
    pictures = {path.name for path in (out / "plots" / "validation").iterdir()}
    assert {"quality-against-state.png", "quality-against-state.svg", "reset-curve.png"} <= pictures
    assert all((out / path).exists() for path in _linked(text))

    # again: nothing is trained, judged or measured twice
    before = {path: path.read_bytes() for path in out.rglob("*.*") if path.is_file()}
    said = dsmr("study", "--out", out)
    assert said.exit_code == 0 and said.stderr.count("finished before") == 4
    assert compare.call_count == 1
    assert {path: path.read_bytes() for path in out.rglob("*.*") if path.is_file()} == before
    assert LIST in said.stdout and COMPRESSED in said.stdout


def _linked(text: str) -> list[str]:
    return [line.partition("](")[2].rstrip(")") for line in text.splitlines() if line.startswith("![")]


def test_an_interrupted_study_gives_the_same_table(
    corpus: Path, whole: Path, undrawn: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer.step

    def killed(self: Trainer, *stop: Any) -> Any:
        if self.config.seed == 1 and self.meter.step == 4:  # in the third run, after its first save
            raise KeyboardInterrupt
        return step(self, *stop)

    out = tmp_path / "study"
    monkeypatch.setattr(Trainer, "step", killed)
    assert dsmr("study", "--out", out, "--data", corpus, *ASKED, "--only", "train").exit_code == 1
    monkeypatch.setattr(Trainer, "step", step)
    found = one_json(dsmr("study", "--out", out, "--only", "report", "--json"))
    assert f"{LIST}, seed 1: trained for 3 of 6 steps" in found["missing"]
    assert f"{COMPRESSED}, seed 1: not trained yet" in found["missing"]
    assert f"{LIST}, seed 0: not judged on validation" in found["missing"]
    assert found["schedules"][0]["splits"]["validation"]["perplexity"]["runs"] == 0

    for stage in ("train", "evaluate"):
        assert dsmr("study", "--out", out, "--only", stage).exit_code == 0
    for name in ("study.csv", "runs.csv"):
        assert (out / name).read_text() == (whole / name).read_text()


def test_ctrl_c_stops_the_study_and_not_the_run_alone(
    corpus: Path, undrawn: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer.step

    def interrupted(self: Trainer, *stop: Any) -> Any:
        if self.meter.step == 1:
            signal.raise_signal(signal.SIGINT)
        return step(self, *stop)

    out = tmp_path / "study"
    monkeypatch.setattr(Trainer, "step", interrupted)
    said = refused(dsmr("study", "--out", out, "--data", corpus, *ASKED))
    assert f"[1/4] {LIST}, seed 0: stopped by a signal and saved; dsmr study --out {out} goes on" in said
    monkeypatch.setattr(Trainer, "step", step)
    found = one_json(dsmr("study", "--out", out, "--only", "report", "--json"))
    assert [run["state"] for row in found["schedules"] for run in row["runs"]] == [
        *("unfinished", "missing"),
        *("missing", "missing"),
    ]
    assert found["schedules"][0]["runs"][0]["step"] == 2


def test_a_report_needs_no_data(copied: Path) -> None:
    values = json.loads((copied / "study.json").read_text())
    values["data"] = str(Path("/gone") / Path(values["data"]).name)
    (copied / "study.json").write_text(json.dumps(values))
    assert dsmr("study", "--out", copied, "--only", "report").exit_code == 0
    assert "no such file or folder" in refused(dsmr("study", "--out", copied, "--only", "evaluate"))


def test_a_run_that_diverges_is_reported_and_the_others_go_on(
    corpus: Path, undrawn: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer.step

    def poisoned(self: Trainer, *stop: Any) -> Any:
        if self.config.seed == 0 and self.config.schedule == LIST and self.meter.step == 4:
            with torch.no_grad():
                self.network.embedding.weight.fill_(float("nan"))
        return step(self, *stop)

    out = tmp_path / "study"
    monkeypatch.setattr(Trainer, "step", poisoned)
    dsmr("study", "--out", out, "--data", corpus, *ASKED, "--only", "train")
    said = dsmr("study", "--out", out, "--only", "evaluate")
    assert said.exit_code == 1 and "Traceback" not in said.output
    assert said.stderr.strip().splitlines()[-1].startswith(f"Error: {LIST}, seed 0: loss is nan")
    states = {row["folder"]: row["state"] for row in rows(out / "runs.csv")}
    assert states == dict.fromkeys(RUNS, "finished") | {RUNS[0]: "failed"}
    one, two = rows(out / "study.csv")
    assert (one["validation_perplexity_runs"], one["validation_perplexity_spread"]) == ("1", "")
    assert two["validation_perplexity_runs"] == "2"
    assert two["validation_nats_vs_first_runs"] == "1"  # of seed 0 there is nothing to compare with
    text = (out / "study.md").read_text()
    assert "(1 of 2 seeds)" in text and f"## Failed\n\n* {LIST}, seed 0: loss is nan" in text

    # tried again without the poison, it goes on from its last save
    monkeypatch.setattr(Trainer, "step", step)
    assert dsmr("study", "--out", out, "--only", "train").exit_code == 0
    assert not (out / RUNS[0] / "failure.json").exists()


# Options


def test_changed_options_are_refused(copied: Path, tmp_path: Path) -> None:
    def said(*words: str) -> str:
        return refused(dsmr("study", "--out", copied, "--only", "report", *words))

    assert "holds a study with --lanes 2, now it is 4: leave it out or choose another --out" in said(
        "--lanes", "4"
    )
    assert "with --steps 6, now it is 8" in said("--steps", "8")
    assert "holds a study without --limit, now it is 1" in said("--limit", "1")
    assert "now it is elsewhere" in said("--data", str(tmp_path / "elsewhere"))
    (copied / "study.json").unlink()
    others = [*options({**OPTIONS, "learning_rate": 0.5}), *SCHEDULES]
    assert "was trained with --learning-rate 0.01, the study asks for 0.5: leave --learning-rate as" in said(
        *others
    )
    (copied / "study.json").write_text("{}")
    assert "cannot be read as a study of this version" in said()


def test_more_seeds_and_schedules_may_be_asked_for(copied: Path) -> None:
    more = [*SCHEDULES, "--schedule", "full:cap=40,floor=1", "--seeds", "0,1,2"]
    found = one_json(dsmr("study", "--out", copied, "--only", "report", *more, "--json"))
    assert [row["over_budget"] for row in found["schedules"]] == [False, False, True]
    assert [run["state"] for run in found["schedules"][0]["runs"]] == ["finished", "finished", "missing"]
    assert found["schedules"][2]["budget_tokens"] == 80
    assert "(over the budget)" in (copied / "study.md").read_text()


def test_a_split_that_is_not_there(copied: Path) -> None:
    said = refused(dsmr("study", "--out", copied, "--eval-split", "test"))
    assert "has no split 'test'" in said


def test_seeds_are_numbers(tmp_path: Path) -> None:
    found = dsmr("study", "--out", tmp_path, "--steps", "1", "--seeds", "0,x")
    assert found.exit_code == 2 and "'0,x' is not a list of whole numbers" in found.stderr


def test_torchrun_is_refused(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "start it without torchrun" in refused(dsmr("study", "--out", copied))


# What is kept


def test_an_evaluation_is_kept_while_it_is_of_the_same_things(
    copied: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Mock(side_effect=history.judge)
    monkeypatch.setattr(history, "judge", judge)

    def judged(*words: str) -> int:
        judge.reset_mock()
        assert dsmr("study", "--out", copied, "--only", "evaluate", *words).exit_code == 0
        return int(judge.call_count)

    assert judged() == 0
    weights = checkpoint.load(copied / RUNS[0] / "last")
    checkpoint.save_tensors(
        copied / RUNS[0] / "best" / "model.safetensors", {n: 2 * t for n, t in weights.weights.items()}
    )
    assert judged() == 1
    (copied / RUNS[1] / "evaluation-validation.json").write_text('{"format": 1')
    assert judged() == 1
    assert judged("--eval-limit", "1") == 4
    assert judged() == 0  # study.json keeps the limit
    changed = Path(shutil.copytree(corpus, tmp_path / "elsewhere" / corpus.name))
    shutil.copy(changed / "1.mid", changed / "4.mid")
    assert judged("--data", str(changed)) == 4


def test_a_measurement_is_kept_while_the_options_are_the_same(copied: Path, compare: Mock) -> None:
    for _ in range(2):
        assert dsmr("study", "--out", copied, "--only", "measure").exit_code == 0
    assert compare.call_count == 1
    assert dsmr("study", "--out", copied, "--only", "measure", "--schedule", LIST).exit_code == 0
    assert compare.call_count == 2
    found = one_json(dsmr("study", "--out", copied, "--only", "report", *SCHEDULES, "--json"))
    assert found["missing"] == ["speed and memory: not measured"]  # what is kept is of other schedules
    (copied / "profile.json").write_text("[]")
    assert dsmr("study", "--out", copied, "--only", "report").exit_code == 0


def test_a_measurement_that_failed_is_made_again(copied: Path, compare: Mock) -> None:
    figures = compare.side_effect

    def failing(configs: Mapping[str, TrainConfig], *more: Any, **others: Any) -> Any:
        found = figures(configs, *more, **others)
        return {name: {"error": "its process ended with 1"} for name in found}

    compare.side_effect = failing
    dsmr("study", "--out", copied, "--only", "measure")
    compare.side_effect = figures
    dsmr("study", "--out", copied, "--only", "measure")
    assert compare.call_count == 2
    dsmr("study", "--out", copied, "--only", "measure")
    assert compare.call_count == 2


@pytest.mark.parametrize(("revision", "said"), [(None, "git unknown"), ("abc123", "git abc123")])
def test_the_report_says_what_measured(
    revision: str | None, said: str, copied: Path, compare: Mock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A revision is None where the package is not run from a clone."""
    monkeypatch.setattr(run_folder, "git_revision", lambda: revision)
    assert dsmr("study", "--out", copied, "--only", "measure").exit_code == 0
    (line,) = [line for line in (copied / "study.md").read_text().splitlines() if "Measured on" in line]
    assert line.endswith(said)


def test_runs_on_different_pieces_are_named(copied: Path) -> None:
    path = copied / RUNS[0] / "run.json"
    facts = json.loads(path.read_text())
    facts["pieces"]["fingerprint"] = "another"
    path.write_text(json.dumps(facts))
    found = one_json(dsmr("study", "--out", copied, "--only", "report", "--json"))
    assert found["warnings"] == [
        "the runs were trained on different pieces: compare only those of one fingerprint in run.json"
    ]


def test_a_finished_run_is_not_touched(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "train", Mock(side_effect=AssertionError("trained again")))
    assert dsmr("study", "--out", copied, "--only", "train").exit_code == 0


# Figures by hand


def test_spread() -> None:
    assert study_report.spread([5.0]) is None
    assert study_report.spread([]) is None
    assert study_report.spread([6.0, 5.0]) == 0.5
    # deviations -1.5, -0.5, 0.5, 1.5: squares sum to 5, 5 / (4 - 1) = 1.6667
    assert study_report.spread([1.0, 2.0, 3.0, 4.0]) == pytest.approx((5 / 3) ** 0.5)


def test_quality_against_state_puts_equal_bytes_side_by_side() -> None:
    points = {
        "two_scale": figures.Quality("two_scale", 1_000_000, 6.0, 0.1),
        "uniform": figures.Quality("uniform", 995_000, 6.5, None),
        "full:cap=8": figures.Quality("full:cap=8", 8_000_000, 5.5, 0.2),
    }
    figure = figures.quality_against_state(points, "a title", 1_000_000)
    (axes,) = figure.axes
    drawn = {bars.get_label(): bars for bars in axes.containers}
    place = {name: float(bars[0].get_xdata()[0]) for name, bars in drawn.items()}
    assert {name: float(bars[0].get_ydata()[0]) for name, bars in drawn.items()} == {
        name: point.perplexity for name, point in points.items()
    }
    assert place["two_scale"] < 1_000_000 < place["uniform"] < 1_100_000
    assert place["full:cap=8"] == 8_000_000
    (_, low, high), (_, _, none) = (
        (name, *bars[1]) if bars[1] else (name, None, None) for name, bars in list(drawn.items())[:2]
    )
    assert [float(line.get_ydata()[0]) for line in (low, high)] == pytest.approx([5.9, 6.1]) and none is None
    assert [round(tick / 1e6, 2) for tick in axes.get_xticks()] == [1.0, 8.0]


def test_progress_of_a_folder_that_is_not_there(tmp_path: Path) -> None:
    plan = Study(tiny(), (Entry.parse(LIST),), (0,), ("validation",))
    assert study.progress(plan.runs()[0], tmp_path / "none").state == "missing"
