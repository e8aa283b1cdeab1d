"""One process, two processes, killed and resumed with another number: the same training."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dsmr_export.errors import TrainingError
from dsmr_export.model import distributed, run_folder
from dsmr_export.model.distributed import Workers
from tests.training_runs import TINY, command, finish, log_of, options, start, write_walks

CONFIG = {**TINY, "lanes": 4, "steps": 24, "save_every": 12, "dropout": 0.0, "learning_rate": 3e-3}
"""Without dropout: each worker draws its own mask, so with it the runs differ as two seeds do."""

TOLERANCE = 1e-3
"""Relative. Both add up the same float32 gradients in another order (a difference of about 1e-7), which AdamW
magnifies where a gradient is near nothing: over 24 steps 1e-7 was found in losses, 2e-5 in norms. A lane that
is left out also changes the number of tokens, which must be equal."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_walks(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def alone(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process that the others are compared with."""
    out = tmp_path_factory.mktemp("alone") / "run"
    code, said = finish(start(*command(out, corpus, *options(CONFIG))))
    assert code == 0, said
    return out


def assert_same_training(one: Path, two: Path) -> None:
    for a, b in zip(log_of(one), log_of(two), strict=True):
        assert (a["step"], a["tokens"]) == (b["step"], b["tokens"])
        for name in ("loss", "grad_norm", "learning_rate"):
            assert float(b[name]) == pytest.approx(float(a[name]), rel=TOLERANCE), (a["step"], name)
        if a["validation_perplexity"]:
            found = float(b["validation_perplexity"])
            assert found == pytest.approx(float(a["validation_perplexity"]), rel=TOLERANCE)
    first, second = (load_file(out / "last" / "model.safetensors") for out in (one, two))
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-2, atol=1e-4)


@pytest.mark.slow
def test_two_processes_accumulate_like_one(corpus: Path, tmp_path: Path) -> None:
    config = options({**CONFIG, "accumulate": 3, "segment": 8, "steps": 8, "save_every": 8})
    for workers in (1, 2):
        code, said = finish(start(*command(tmp_path / str(workers), corpus, *config, workers=workers)))
        assert code == 0, said
    assert_same_training(tmp_path / "1", tmp_path / "2")


def test_two_processes_train_like_one(alone: Path, corpus: Path, tmp_path: Path) -> None:
    code, said = finish(start(*command(tmp_path / "run", corpus, *options(CONFIG), workers=2)))
    assert code == 0, said
    assert_same_training(alone, tmp_path / "run")
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["starts"][0]["workers"] == 2
    losses = [float(row["loss"]) for row in log_of(alone)]
    assert losses[-1] < 0.9 * losses[0]  # there was something to agree on


@pytest.mark.parametrize(("before", "after"), [(2, 1), pytest.param(1, 2, marks=pytest.mark.slow)])
def test_a_run_goes_on_with_another_number_of_workers(
    before: int, after: int, alone: Path, corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = start(*command(out, corpus, *options({**CONFIG, "save_every": 4}), workers=before))
    wait_for_step(out, 8)
    process.terminate()
    code, said = finish(process)
    stopped = len(log_of(out))
    if code == 0:
        pytest.fail(f"the run was over before it could be stopped: {said}")
    more = command(out, corpus, "--steps", "24", "--resume", workers=after)
    code, said = finish(start(*more))
    assert code == 0, said
    assert 8 <= stopped < 24
    starts = json.loads((out / "run.json").read_text())["starts"]
    assert [one["workers"] for one in starts] == [before, after] and starts[1]["step"] > 0
    whole, found = log_of(alone), log_of(out)
    for a, b in zip(whole, found, strict=True):
        assert float(b["loss"]) == pytest.approx(float(a["loss"]), rel=TOLERANCE), a["step"]


def test_a_worker_that_dies_is_started_again_and_resumes(alone: Path, corpus: Path, tmp_path: Path) -> None:
    """torchrun's restart: the command has no --resume, and goes on all the same from the last save."""
    out = tmp_path / "run"
    config = options({**CONFIG, "save_every": 2})
    process = start(*command(out, corpus, *config, workers=2, restarts=1))
    wait_for_step(out, 6)
    victims = children(process.pid)
    assert len(victims) == 2
    os.kill(victims[1], signal.SIGKILL)
    code, said = finish(process)
    assert code == 0, said
    starts = json.loads((out / "run.json").read_text())["starts"]
    assert len(starts) == 2 and starts[1]["step"] >= 4
    for a, b in zip(log_of(alone), log_of(out), strict=True):
        assert float(b["loss"]) == pytest.approx(float(a["loss"]), rel=TOLERANCE), a["step"]


def wait_for_step(out: Path, step: int) -> None:
    for _ in range(1200):
        if (out / "log.csv").exists() and len(log_of(out)) >= step:
            return
        time.sleep(0.05)
    pytest.fail(f"{out} did not come to step {step}")


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def test_lanes_that_cannot_be_shared_out() -> None:
    assert [list(Workers(rank, 3).lanes(6)) for rank in range(3)] == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(
        TrainingError, match="--lanes 8 cannot be shared out to 3 workers: make it a multiple"
    ):
        Workers(0, 3).lanes(8)


def test_one_worker_needs_nobody() -> None:
    workers = Workers()
    assert workers.sum(1.5, 2.0) == [1.5, 2.0]
    assert torch.equal(workers.gather(torch.arange(3)), torch.arange(3))
    workers.require_same("abc", "pieces")
    assert distributed.restarts() == 0


DIFFERENT = """
import sys
from dsmr_export.errors import TrainingError
from dsmr_export.model import distributed, run_folder
with distributed.join("cpu") as workers:
    workers.require_same("a" * 64, "pieces")
    try:
        workers.require_same(str(workers.rank) * 64, "pieces")
    except TrainingError as error:
        print(error, file=sys.stderr)
"""


def test_machines_with_different_data_are_refused(tmp_path: Path) -> None:
    (tmp_path / "different.py").write_text(DIFFERENT)
    launch = command(tmp_path, tmp_path, workers=2)
    torchrun = launch[: launch.index("-m", launch.index("--nproc-per-node"))]
    code, said = finish(start(*torchrun, str(tmp_path / "different.py")))
    assert code == 0, said
    assert said.count("the workers do not see the same pieces") == 2


def test_what_one_worker_refuses_ends_the_others_in_one_line(corpus: Path, tmp_path: Path) -> None:
    code, said = finish(start(*command(tmp_path / "run", tmp_path / "nothere", "--steps", "2", workers=2)))
    assert code == 1
    ours = [line for line in said.splitlines() if line.startswith("Error: ")]
    assert sum("nothere" in line for line in ours) == 1
    assert sum("another worker is gone" in line for line in ours) <= 1  # if torchrun let it say so
    assert "train_main" not in said  # no traceback of ours; torchrun prints one of its own


def test_a_refused_run_is_not_resumed_by_a_restart(alone: Path, corpus: Path) -> None:
    """It is not the run of which a worker died."""
    before = (alone / "run.json").read_bytes()
    code, said = finish(start(*command(alone, corpus, *options(CONFIG), restarts=1)))
    assert code == 1 and said.count("already holds a training run: continue it with --resume") == 2
    assert (alone / "run.json").read_bytes() == before


# Workers that are not equally fast

SLOW = """
import os, sys, time
from dsmr_export import cli
from dsmr_export.model.trainer import Trainer

def slowed(name, seconds):
    method = getattr(Trainer, name)
    def slow(self, *values):
        time.sleep(seconds)
        return method(self, *values)
    setattr(Trainer, name, slow)

if os.environ["RANK"] == "0":
    slowed("_save_checkpoint", 0.2)
slowed("_backward", float(os.environ["STEP_S"]))
cli.train_main()
"""


def slow_run(tmp_path: Path, corpus: Path, *more: str) -> list[str]:
    (tmp_path / "slow.py").write_text(SLOW)
    launch = command(tmp_path / "run", corpus, *more, workers=2)
    place = launch.index("-m", launch.index("--nproc-per-node"))
    return [*launch[:place], str(tmp_path / "slow.py"), *launch[place + 2 :]]


def test_a_run_of_minutes_ends_on_all_workers_at_once(corpus: Path, tmp_path: Path) -> None:
    """How far a run is, is what worker 0 says, though the others wait while it saves."""
    config = {**CONFIG, "save_every": 4}
    del config["steps"]
    words = slow_run(tmp_path, corpus, *options(config), "--minutes", "0.03")
    code, said = finish(start(*words, env={"STEP_S": "0.01"}))
    assert code == 0, said
    rows = log_of(tmp_path / "run")
    # The last row is of a step; the validation after it may have filled the 1.8 seconds.
    assert rows[-1]["validation_perplexity"] and float(rows[-1]["elapsed_s"]) > 0.9
    rates = [float(row["learning_rate"]) for row in rows]
    assert rates[4:] == sorted(rates[4:], reverse=True)  # the clock only goes forward


def test_a_signal_to_every_process_saves_the_step_at_hand(corpus: Path, tmp_path: Path) -> None:
    """A scheduler signals all of them, and torchrun then passes its own on."""
    config = options({**CONFIG, "save_every": 1000, "steps": 1000})
    process = start(*slow_run(tmp_path, corpus, *config), env={"STEP_S": "1.0"})
    wait_for_step(tmp_path / "run", 2)
    for pid in (*children(process.pid), process.pid):
        os.kill(pid, signal.SIGTERM)
    code, said = finish(process)
    assert code != 0
    saved = json.loads(run_folder.read_saved(tmp_path / "run")[1]["meter"])
    assert saved["step"] == int(log_of(tmp_path / "run")[-1]["step"]) < 1000
