"""What goes wrong in a long run: it is killed, the disk fills, memory runs out, the data changes."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from dsmr_export.errors import TrainingError
from dsmr_export.model import checkpoint, data, run_folder
from dsmr_export.model import tokenizer as tokens
from dsmr_export.model.train import saved_length, train
from dsmr_export.model.trainer import Trainer, explaining
from tests.exported import write_checkpoint
from tests.training_runs import TINY, command, finish, log_of, options, start, tiny, write_scales, write_walks

TOKENIZER = tokens.default_tokenizer()
TIMELESS = ("step", "epoch", "tokens", "learning_rate", "loss", "grad_norm", "validation_perplexity")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_walks(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def made(corpus: Path, tmp_path: Path) -> Trainer:
    pieces = data.load(corpus, "train", TOKENIZER, progress=False).pieces
    return Trainer(tiny(), tmp_path / "run", pieces, TOKENIZER)


def run(out: Path, corpus: Path, resume: bool = False, **changes: Any) -> None:
    train(tiny(**changes), out, corpus, resume=resume, console=Console(quiet=True))


# Killed


def assert_whole(out: Path) -> None:
    """Nothing in a run folder is half-written, whenever its process was killed."""
    if (out / run_folder.TRAINING).exists():
        run_folder.read_saved(out)
        run_folder.read_facts(out)
        checkpoint.load(out / "last").tokenizer()
        checkpoint.load(out / "best").tokenizer()


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_killed_again_and_again_is_the_run_that_was_left_alone(
    kills: int, corpus: Path, tmp_path: Path
) -> None:
    """kill -9 at random moments; bit for bit the same losses and weights in the end, with dropout."""
    steps = 150 * kills
    config = options({**TINY, "steps": steps, "save_every": 5, "dropout": 0.1})
    code, said = finish(start(*command(tmp_path / "whole", corpus, *config)))
    assert code == 0, said
    out, rng, killed = tmp_path / "killed", random.Random(0), 0
    while True:
        saved = (out / run_folder.TRAINING).exists()
        more = ["--steps", str(steps), "--resume"] if saved else config
        process = start(*command(out, corpus, *more))
        if killed == kills:
            code, said = finish(process)
            assert code == 0, said
            break
        before = (out / run_folder.TRAINING).stat().st_mtime_ns if saved else 0
        while process.poll() is None and not _changed(out / run_folder.TRAINING, before):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        finish(process)
        (out / f".training.safetensors.{process.pid}.tmp").write_bytes(b"half")  # as if it had been writing
        killed += 1
        assert_whole(out)
    assert sum(1 for _ in run_folder.read_facts(out)["starts"]) > 1  # the kills hit it while it ran
    for one, two in zip(log_of(tmp_path / "whole"), log_of(out), strict=True):
        assert [one[name] for name in TIMELESS] == [two[name] for name in TIMELESS]
    weights = [load_file(folder / "last" / "model.safetensors") for folder in (tmp_path / "whole", out)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert [path.name for path in out.rglob("*.tmp")] == []  # what a kill left is cleared away


def _changed(path: Path, before: int) -> bool:
    return path.exists() and path.stat().st_mtime_ns > before


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_run_killed_around_a_save_keeps_its_log(
    when: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Just before: the row is in the log, the step is not saved. Just after: both are."""
    save = Trainer.save

    def killed(self: Trainer) -> None:
        if when == "after" or self.meter.step < 4:
            save(self)
        if self.meter.step == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", corpus, steps=6, save_every=2)
    monkeypatch.undo()
    assert [row["step"] for row in log_of(tmp_path / "run")] == ["1", "2", "3", "4"]
    run(tmp_path / "run", corpus, steps=6, resume=True)
    rows = log_of(tmp_path / "run")
    assert [row["step"] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    assert [row["step"] for row in rows if row["validation_perplexity"]] == ["2", "4", "6"]


def test_a_torn_row_of_the_log_is_cut_off(corpus: Path, tmp_path: Path) -> None:
    run(tmp_path / "run", corpus, steps=4)
    log = tmp_path / "run" / "log.csv"
    log.write_text(log.read_text() + "1")
    run(tmp_path / "run", corpus, steps=6, resume=True)
    assert [row["step"] for row in log_of(tmp_path / "run")] == ["1", "2", "3", "4", "5", "6"]


def test_the_best_checkpoint_may_be_newer_than_the_save(made: Trainer) -> None:
    """Killed between the two; a worse one of later must not take its place."""
    made.meter.best_perplexity = 100.0
    made.save()
    made._save_checkpoint("best", {"validation_perplexity": 50.0})
    made.load(*run_folder.read_saved(made.out))
    assert made.meter.best_perplexity == 50.0


def test_a_signal_saves_the_step_at_hand(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(*command(out, corpus, *options({**TINY, "steps": 100_000, "save_every": 100_000})))
    while not (out / "log.csv").exists() or len(log_of(out)) < 3:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    code, said = finish(process)
    assert code == 1 and "Traceback" not in said
    last = log_of(out)[-1]["step"]
    assert f"stopped by a signal at step {last}, which is saved: --resume goes on from it" in said
    assert json.loads(run_folder.read_saved(out)[1]["meter"])["step"] == int(last)


# Disk and memory


def test_a_full_disk(corpus: Path, tmp_path: Path) -> None:
    """A real one as far as a process can tell: no file may grow beyond 60 kB, the state needs more."""
    out = tmp_path / "run"
    small = {**TINY, "d_model": 16, "steps": 4}
    code, said = finish(start(*command(out, corpus, *options(small))))
    assert code == 0, said
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert len(before[out / run_folder.TRAINING]) > 60_000

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # else the kernel kills; ignored, write() fails
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    process = start(*command(out, corpus, "--steps", "8", "--resume"), preexec_fn=limit)
    code, said = finish(process)
    assert code == 1 and "Traceback" not in said
    assert "training.safetensors: cannot be written" in said and "make room" in said
    assert (out / run_folder.TRAINING).read_bytes() == before[out / run_folder.TRAINING]
    assert_whole(out)
    code, said = finish(start(*command(out, corpus, "--steps", "8", "--resume")))
    assert code == 0, said


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: 9 bytes"),
    ],
)
def test_out_of_memory_names_the_options_to_turn(
    error: Exception, made: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(made, "forward", fail)
    expected = (
        r"out of memory at step 0 on cpu \(.*\): lower --lanes \(2\), --segment \(16\) or --budget \(17\)"
    )
    with pytest.raises(TrainingError, match=expected):
        made.step()


def test_torch_says_allocate_memory_when_there_is_none(made: Trainer) -> None:
    """The words that the test above makes up are those of this version of torch."""
    with (
        pytest.raises(TrainingError, match="out of memory here on cpu"),
        explaining(made.config, made.device, "here"),
    ):
        torch.empty(1 << 60)


def test_a_budget_that_memory_cannot_hold(corpus: Path, tmp_path: Path) -> None:
    """The states are allocated before the first step."""
    with pytest.raises(TrainingError, match=r"out of memory before the first step .* --budget \(9{11}"):
        run(tmp_path / "run", corpus, schedule=f"{10**12 - 9},5", budget=10**12 - 1)


def test_any_other_error_is_not_dressed_up(made: Trainer) -> None:
    with (
        pytest.raises(RuntimeError, match="size of tensor"),
        explaining(made.config, made.device, "here"),
    ):
        torch.ones(2) + torch.ones(3)


# Diverging


def test_an_exploding_loss_stops_the_run(made: Trainer) -> None:
    with torch.no_grad():
        made.network.embedding.weight.mul_(1000)
    with pytest.raises(TrainingError, match=r"loss is \d+\.\d\d, more than twice that of a uniform guess"):
        made.step()


# Resumed with something else


def test_data_that_changed_since_the_run_began(corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    shutil.copytree(corpus, folder)
    run(tmp_path / "run", folder, steps=4)
    shutil.copy(folder / "1.mid", folder / "0.mid")  # as many pieces, another content
    with pytest.raises(TrainingError, match="was trained on other pieces: 5 when it began, 5 now, or their"):
        run(tmp_path / "run", folder, steps=8, resume=True)
    (folder / "0.mid").write_bytes(b"not MIDI")
    with pytest.raises(TrainingError, match="was trained on other pieces: 5 when it began, 4 now"):
        run(tmp_path / "run", folder, steps=8, resume=True)


def test_validation_data_that_changed(corpus: Path, tmp_path: Path) -> None:
    """Perplexities of other pieces cannot say which checkpoint is the best."""
    folder = tmp_path / "corpus"
    shutil.copytree(corpus, folder)
    run(tmp_path / "run", folder, steps=4)
    shutil.copy(folder / "0.mid", folder / "6.mid")
    with pytest.raises(TrainingError, match="or the validation pieces changed"):
        run(tmp_path / "run", folder, steps=8, resume=True)


def test_resume_alone_keeps_the_length(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(out, corpus, steps=4)
    assert saved_length(out) == {"steps": 4, "minutes": None}
    code, said = finish(start(*command(out, corpus, "--resume")))
    assert code == 0, said
    assert len(log_of(out)) == 4 and "is already at step 4" in said


def test_resume_alone_keeps_the_data(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(tiny(steps=4), out, corpus, limit=3, console=Console(quiet=True))
    train(tiny(steps=6), out, resume=True, console=Console(quiet=True))
    assert len(log_of(out)) == 6
    with pytest.raises(TrainingError, match="was trained on other pieces: 3 when it began, 5 now"):
        train(tiny(steps=8), out, corpus, resume=True, console=Console(quiet=True))


def test_options_that_a_resumed_run_cannot_take(corpus: Path, tmp_path: Path) -> None:
    """What is written on the command line counts; defaults do not."""
    out = tmp_path / "run"
    run(out, corpus, steps=4)
    with pytest.raises(TrainingError, match=r"was started with --d-ff 24 and cannot go on with 32: leave"):
        train(tiny(d_ff=32), out, corpus, resume=True, given=["d_ff"], console=Console(quiet=True))
    train(tiny(d_ff=32), out, corpus, resume=True, given=["steps"], console=Console(quiet=True))
    assert checkpoint.load(out / "last").config.d_ff == 24


def test_another_tokenizer(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "run", corpus, steps=4)
    monkeypatch.setattr(Trainer, "_tokenizer_digest", lambda self: "0" * 64)
    with pytest.raises(TrainingError, match="was trained with another tokenizer"):
        run(tmp_path / "run", corpus, steps=8, resume=True)


def test_a_state_of_another_version(made: Trainer, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made.step()
    monkeypatch.setattr(run_folder, "FORMAT", "1")
    made.save()
    monkeypatch.undo()
    with pytest.raises(TrainingError, match="was written by another version of dsmr-export"):
        run(made.out, corpus, resume=True)


# Starting from a checkpoint


def test_a_run_starts_from_a_checkpoint(corpus: Path, tmp_path: Path) -> None:
    run(tmp_path / "first", corpus, steps=40, learning_rate=1e-2, dropout=0.0)
    config = tiny(steps=4, learning_rate=1e-6, dropout=0.0)
    init = tmp_path / "first" / "last"
    train(config, tmp_path / "second", corpus, init=init, console=Console(quiet=True))
    first, second = (log_of(tmp_path / name) for name in ("first", "second"))
    assert float(second[0]["loss"]) < 0.8 * float(first[0]["loss"])
    sha256 = checkpoint.load(init).sha256
    assert run_folder.read_facts(tmp_path / "second")["init"] == sha256

    run(tmp_path / "second", corpus, steps=6, resume=True)
    assert run_folder.read_facts(tmp_path / "second")["init"] == sha256
    with pytest.raises(TrainingError, match="--init begins a run, and the one in .* has begun"):
        train(tiny(), tmp_path / "second", corpus, resume=True, init=init, console=Console(quiet=True))


def test_a_checkpoint_of_another_architecture(corpus: Path, tmp_path: Path) -> None:
    init = write_checkpoint(tmp_path / "other").path
    with pytest.raises(TrainingError, match=r"--init .*other has layers \d+, the run 2: .*\(--layers \d+\)"):
        train(tiny(), tmp_path / "run", corpus, init=init, console=Console(quiet=True))
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_tokenizer(corpus: Path, tmp_path: Path) -> None:
    run(tmp_path / "first", corpus, steps=4)
    tokenizer = tmp_path / "first" / "last" / "tokenizer.json"
    text = tokenizer.read_text()
    assert '"encode_ids_split": "bar"' in text
    tokenizer.write_text(text.replace('"encode_ids_split": "bar"', '"encode_ids_split": "beat"'))
    with pytest.raises(TrainingError, match="has another tokenizer than a new run"):
        init = tmp_path / "first" / "last"
        train(tiny(), tmp_path / "second", corpus, init=init, console=Console(quiet=True))


# What a run says of itself


def test_a_run_folder_says_all_about_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    write_scales(folder)
    train(tiny(), tmp_path / "run", folder, console=Console(quiet=True), command="dsmr train …")
    facts = run_folder.read_facts(tmp_path / "run")
    assert facts["config"]["layers"] == 2 and facts["horizons"] == [12, 5]
    assert facts["state_bytes"] == (12 + 5) * 2 * 1 * 16 * 4
    assert facts["pieces"]["train"] == 4 and facts["pieces"]["validation"] == 1
    assert facts["pieces"]["fingerprint"] == data.load(folder, "train", TOKENIZER, progress=False).fingerprint
    assert {"torch", "numpy", "miditok", "dsmr-export", "python", "platform"} <= facts["versions"].keys()
    assert facts["starts"] == [
        {"steps": 8, "minutes": None, "step": 0, "workers": 1, "command": "dsmr train …"}
    ]


def test_what_changed_stands_with_the_later_start(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    monkeypatch.setattr(run_folder, "versions", lambda: {"torch": "1"})
    run(out, corpus, steps=4)
    monkeypatch.setattr(run_folder, "versions", lambda: {"torch": "2"})
    run(out, corpus, steps=8, resume=True)
    facts = run_folder.read_facts(out)
    assert facts["versions"] == {"torch": "1"} and facts["config"]["steps"] == 8
    assert "versions" not in facts["starts"][0] and facts["starts"][1]["versions"] == {"torch": "2"}
    (out / "run.json").write_text("{")  # damaged: a loss, but no reason not to go on
    run(out, corpus, steps=12, resume=True)
    assert len(run_folder.read_facts(out)["starts"]) == 1


def test_the_git_revision_is_this_repositorys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists() or shutil.which("git") is None:
        pytest.skip("these tests do not run in a clone, or git is not installed")
    head = os.popen(f"git -C '{root}' rev-parse HEAD").read().strip()
    assert (run_folder.git_revision() or "").removesuffix("+") == head
    monkeypatch.setattr(run_folder.dsmr_export, "__file__", str(tmp_path / "dsmr_export" / "__init__.py"))
    assert run_folder.git_revision() is None


def test_tensorboard_is_optional(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(TrainingError, match="--tensorboard needs the tensorboard package: pip install"):
        train(tiny(), tmp_path / "run", corpus, tensorboard=True, console=Console(quiet=True))
    assert not (tmp_path / "run").exists()


def test_what_is_saved_is_as_readable_as_any_file(corpus: Path, tmp_path: Path) -> None:
    run(tmp_path / "run", corpus, steps=4)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert len(modes) == 1


def test_tensorboard_gets_what_the_log_gets(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through a stand-in for its writer: the package itself is not among what the tests install."""
    points: list[tuple[str, float, int]] = []

    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int) -> None:
            assert folder == str(tmp_path / "run" / "tensorboard") and purge_step == 1

        def __enter__(self) -> SummaryWriter:
            return self

        def __exit__(self, *_: object) -> None:
            points.append(("closed", 0.0, 0))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            points.append((name, value, step))

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=SummaryWriter))
    train(tiny(), tmp_path / "run", corpus, tensorboard=True, console=Console(quiet=True))
    rows = log_of(tmp_path / "run")
    losses = [(value, step) for name, value, step in points if name == "loss"]
    assert losses == [(float(row["loss"]), int(row["step"])) for row in rows]
    assert {name for name, _, _ in points} >= {"validation_perplexity", "learning_rate", "closed"}
