"""Training on a few made-up pieces: it learns, and a run that was stopped anywhere goes on exactly."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from dsmr_export.errors import OutputError, OutputExistsError, TrainingError
from dsmr_export.model import checkpoint, data, run_folder
from dsmr_export.model import tokenizer as tokens
from dsmr_export.model.evaluate import evaluate
from dsmr_export.model.train import train
from dsmr_export.model.train_config import TrainConfig
from dsmr_export.model.trainer import Meter, Trainer
from tests.training_runs import log_of, tiny, write_scales

TOKENIZER = tokens.default_tokenizer()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scales(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def pieces(corpus: Path) -> list[data.TokenizedPiece]:
    return data.load(corpus, "train", TOKENIZER, progress=False).pieces


def trainer(config: TrainConfig, out: Path, pieces: list[data.TokenizedPiece]) -> Trainer:
    return Trainer(config, out, pieces, TOKENIZER, about={"data": "made up"})


def run(config: TrainConfig, out: Path, corpus: Path, resume: bool = False) -> Meter:
    return train(config, out, corpus, resume=resume, console=Console(quiet=True))


def test_the_loss_goes_down(corpus: Path, tmp_path: Path) -> None:
    """An untrained network is as good as a uniform guess; these scales are far easier than that."""
    meter = run(tiny(steps=60, save_every=30, transpose=0, tempo=0.0, dropout=0.0), tmp_path / "run", corpus)
    rows = log_of(tmp_path / "run")
    assert [int(row["step"]) for row in rows] == list(range(1, 61))
    losses = [float(row["loss"]) for row in rows]
    assert losses[0] == pytest.approx(math.log(311), abs=0.1)
    assert np.mean(losses[-5:]) < 0.6 * losses[0]
    assert [row["step"] for row in rows if row["validation_perplexity"]] == ["30", "60"]
    assert meter.validations[1] < meter.validations[0] < 311
    assert meter.step == 60 and meter.tokens == int(rows[-1]["tokens"])

    best = checkpoint.load(tmp_path / "run" / "best")
    assert best.schedule.horizons == (12, 5)
    assert best.data == corpus.name
    held_out = data.load(corpus, "validation", TOKENIZER, progress=False).pieces
    again = evaluate(best.network(), [piece.ids for piece in held_out])
    assert again.perplexity == pytest.approx(meter.best_perplexity, rel=1e-6)


def test_tokens_are_weighed_alike_whatever_their_lane(
    pieces: list[data.TokenizedPiece], tmp_path: Path
) -> None:
    """The loss of a step is the mean over its predicted tokens: masked tails count nothing."""
    made = trainer(tiny(dropout=0.0, segment=400), tmp_path, pieces)  # every piece in one segment
    ids = [made.source.draw(n) for n in range(2)]
    nll = evaluate(made.network, ids).nll
    expected = sum(piece.sum() for piece in nll) / sum(len(piece) - 1 for piece in ids)
    assert made.step()["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_device_that_is_not_there(corpus: Path, tmp_path: Path) -> None:
    for device in ("toaster", "meta"):  # unknown; known, but nothing can be computed on it
        with pytest.raises(TrainingError, match=f"--device {device} cannot be used here"):
            train(tiny(), tmp_path / "run", corpus, device=device)
    assert not (tmp_path / "run").exists()


# Resume


def test_a_resumed_run_is_the_run_that_never_stopped(
    pieces: list[data.TokenizedPiece], tmp_path: Path
) -> None:
    """Bit for bit: weights, optimizer, recurrent state, dropout, order and augmentation, learning rate."""
    config = tiny(steps=10, dropout=0.2)
    whole = trainer(config, tmp_path / "whole", pieces)
    expected = [whole.step() for _ in range(10)]

    first = trainer(config, tmp_path / "halves", pieces)
    found = [first.step() for _ in range(5)]
    first.save()
    torch.manual_seed(999)
    second = trainer(config, tmp_path / "halves", pieces)
    second.load(*run_folder.read_saved(tmp_path / "halves"))
    found += [second.step() for _ in range(5)]

    timeless = ("step", "epoch", "tokens", "learning_rate", "loss", "grad_norm")
    assert [[row[key] for key in timeless] for row in found] == [
        [row[key] for key in timeless] for row in expected
    ]
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, second.network.state_dict()[name]), name
    for one, two in zip(whole.state.layers, second.state.layers, strict=True):
        assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])
    assert torch.equal(whole.state.position, second.state.position)
    assert torch.equal(whole.state.length, second.state.length)


def test_a_run_killed_between_two_saves_goes_on_from_the_first(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(steps=8, save_every=4, dropout=0.1)
    run(config, tmp_path / "whole", corpus)

    step = Trainer.step

    def killed(self: Trainer, *stop: Any) -> dict[str, float]:
        if self.meter.step == 6:
            raise KeyboardInterrupt
        return step(self, *stop)

    monkeypatch.setattr(Trainer, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "killed", corpus)
    monkeypatch.undo()
    assert len(log_of(tmp_path / "killed")) == 6
    meter = run(config, tmp_path / "killed", corpus, resume=True)
    assert meter.step == 8

    for name in ("best", "last"):
        one, two = (load_file(tmp_path / out / name / "model.safetensors") for out in ("whole", "killed"))
        assert all(torch.equal(tensor, two[key]) for key, tensor in one.items())
    timed = ("elapsed_s", "tokens_per_s")
    whole, killed_log = (
        [{key: value for key, value in row.items() if key not in timed} for row in log_of(tmp_path / out)]
        for out in ("whole", "killed")
    )
    assert killed_log == whole  # rows 5 and 6 of the killed run are not there twice


def test_a_finished_run_can_be_made_longer(corpus: Path, tmp_path: Path) -> None:
    run(tiny(steps=4), tmp_path, corpus)
    meter = run(tiny(steps=6, dropout=0.5), tmp_path, corpus, resume=True)
    assert meter.step == 6
    _, metadata = run_folder.read_saved(tmp_path)
    assert '"dropout": 0.1' in metadata["config"] and '"steps": 6' in metadata["config"]
    starts = json.loads((tmp_path / "run.json").read_text())["starts"]
    assert [(start["step"], start["steps"]) for start in starts] == [(0, 4), (4, 6)]


def test_an_existing_run_is_refused_without_resume(corpus: Path, tmp_path: Path) -> None:
    run(tiny(steps=4), tmp_path, corpus)
    before = (tmp_path / "training.safetensors").read_bytes()
    with pytest.raises(OutputExistsError, match="already holds a training run: continue it with --resume"):
        run(tiny(steps=4), tmp_path, corpus)
    assert (tmp_path / "training.safetensors").read_bytes() == before


def test_a_run_stopped_before_its_first_save_begins_again(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither refused as existing nor as having nothing to resume, one pointing at the other."""
    step = Trainer.step

    def killed(self: Trainer, *stop: Any) -> dict[str, float]:
        if self.meter.step == 2:
            raise KeyboardInterrupt
        return step(self, *stop)

    monkeypatch.setattr(Trainer, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tiny(steps=4), tmp_path, corpus)
    monkeypatch.undo()
    assert run(tiny(steps=4), tmp_path, corpus).step == 4
    assert [row["step"] for row in log_of(tmp_path)] == ["1", "2", "3", "4"]


def test_nothing_to_resume(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"nothing to resume: .* is missing; start the run without"):
        run(tiny(), tmp_path / "none", corpus, resume=True)
    assert not (tmp_path / "none").exists()


def test_a_damaged_state_is_refused(corpus: Path, tmp_path: Path) -> None:
    run(tiny(steps=4), tmp_path, corpus)
    state = tmp_path / "training.safetensors"
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(TrainingError, match=r"training\.safetensors is damaged"):
        run(tiny(steps=8), tmp_path, corpus, resume=True)
    checkpoint.load(tmp_path / "last")  # as the message says
    save_file({"a": torch.zeros(1)}, state)
    with pytest.raises(TrainingError, match="is not the state of a training run"):
        run(tiny(steps=8), tmp_path, corpus, resume=True)


def test_other_pieces_are_refused(corpus: Path, tmp_path: Path) -> None:
    run(tiny(steps=4), tmp_path, corpus)
    with pytest.raises(TrainingError, match=r"was trained on other pieces: 4 when it began, 2 now"):
        train(tiny(steps=8), tmp_path, corpus, limit=2, resume=True, console=Console(quiet=True))


# Trouble


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_what_was_saved(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer.step

    def poisoned(self: Trainer, *stop: Any) -> dict[str, float]:
        if self.meter.step == 5:
            with torch.no_grad():
                self.network.norm.weight[0] = math.nan
        return step(self, *stop)

    monkeypatch.setattr(Trainer, "step", poisoned)
    with pytest.raises(
        TrainingError,
        match=r"loss is nan.* at step 5; what .* is from before: start .* lower --learning-rate",
    ):
        run(tiny(), tmp_path, corpus)
    for name in ("best", "last"):
        weights = checkpoint.load(tmp_path / name).weights
        assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    tensors, metadata = run_folder.read_saved(tmp_path)
    assert '"step": 4' in metadata["meter"]
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


def test_weights_that_validate_to_nan_are_not_saved(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validate = Trainer.validate

    def poisoned(self: Trainer, held_out: Any) -> Any:
        if self.meter.step == 8:
            with torch.no_grad():
                self.network.norm.weight[0] = math.nan
        return validate(self, held_out)

    monkeypatch.setattr(Trainer, "validate", poisoned)
    with pytest.raises(TrainingError, match="validation perplexity is nan at step 8; what"):
        run(tiny(), tmp_path, corpus)
    assert torch.isfinite(checkpoint.load(tmp_path / "last").weights["norm.weight"]).all()


def test_divergence_before_the_first_save_does_not_speak_of_one(
    pieces: list[data.TokenizedPiece], tmp_path: Path
) -> None:
    made = trainer(tiny(), tmp_path, pieces)
    with torch.no_grad():
        made.network.norm.weight[0] = math.inf
    with pytest.raises(TrainingError, match="at step 0; nothing was saved: start a run with a lower"):
        made.step()


def test_a_failed_save_leaves_the_old_state(
    pieces: list[data.TokenizedPiece], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trainer(tiny(), tmp_path, pieces)
    made.step()
    made.save()
    before = (tmp_path / "training.safetensors").read_bytes()
    made.step()
    real = checkpoint.save_file

    def full(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None) -> None:
        if path.name.startswith(".training"):
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        real(tensors, path, metadata)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OutputError, match=r"training\.safetensors: cannot be written .*No space left"):
        made.save()
    assert (tmp_path / "training.safetensors").read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last", "training.safetensors"]


def test_an_output_that_cannot_be_written(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match=r"file/run: cannot be written .*choose another --out"):
        run(tiny(), tmp_path / "file" / "run", corpus)


def test_the_learning_rate_warms_up_and_comes_down(pieces: list[data.TokenizedPiece], tmp_path: Path) -> None:
    made = trainer(tiny(steps=100, warmup_steps=10, final_learning_rate=0.1), tmp_path, pieces)
    rates = []
    for made.meter.step in range(100):
        rates.append(made.learning_rate())
    assert rates[0] == pytest.approx(1e-2 / 10, rel=0.01)
    assert max(rates) == pytest.approx(1e-2, rel=0.05) and rates.index(max(rates)) == 9
    assert rates[50] == pytest.approx(1e-2 * (0.1 + 0.9 / 2))
    assert rates[-1] == pytest.approx(1e-3, rel=0.01)


# What a run is


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"steps": None}, "either in --steps or in --minutes"),
        ({"minutes": 3.0}, "either in --steps or in --minutes"),
        ({"steps": 0}, "--steps must be positive, got 0"),
        ({"steps": None, "minutes": math.nan}, "--minutes must be positive, got nan"),
        ({"lanes": 0}, "--lanes must be positive, got 0"),
        ({"save_every": -1}, "--save-every must be positive, got -1"),
        ({"learning_rate": 0.0}, "--learning-rate must be positive, got 0.0"),
        ({"dropout": 1.0}, "--dropout must be at least 0 and below 1, got 1.0"),
        ({"transpose": -1}, "--transpose must be 0 or more, got -1"),
        ({"tempo": 3.0}, "--tempo must be at most 1, twice as fast or half, got 3.0"),
        ({"precision": "fp8"}, "--precision must be one of auto, fp32, bf16, got fp8"),
        ({"velocity": -1}, "--velocity must be 0 or more, got -1"),
        ({"accumulate": 0}, "--accumulate must be positive, got 0"),
        ({"validation_pieces": 0}, "--validation-pieces must be positive, got 0"),
        ({"tempo": -0.5}, "--tempo must be 0 or more, got -0.5"),
        ({"seed": -1}, "--seed must be 0 or more, got -1"),
    ],
)
def test_a_run_that_cannot_be(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(TrainingError) as caught:
        tiny(**changes)
    assert expected in str(caught.value)
