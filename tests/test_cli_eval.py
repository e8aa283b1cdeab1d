"""`dsmr eval`: its JSON, tables and pictures, and what it refuses."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from dsmr_export import corpus
from tests.test_cli import dsmr, one_json, refused

pytest.importorskip("torch", reason="evaluation runs in PyTorch")

KEYS = {
    *("perplexity", "nats_per_token", "nats_per_note", "nats_per_second", "per_piece_mean", "by_position"),
    *("truncation", "krcu", "tokens", "pieces", "notes", "seconds", "schedule", "state_bytes"),
}
PICTURES = [
    f"{name}.{kind}"
    for name in ("perplexity-by-position", "reset-curve", "schedule", "truncation")
    for kind in ("png", "svg")
]


@pytest.fixture(scope="module")
def long_piece(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled piece with the largest file: more than 8,192 tokens."""
    path = tmp_path_factory.mktemp("music") / "long.mid"
    path.write_bytes(max((piece.read() for piece in corpus.pieces(None, "test")), key=len))
    return path


@pytest.fixture(scope="module")
def short_piece(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("music") / "short.mid"
    path.write_bytes(min((piece.read() for piece in corpus.pieces(None, "test")), key=len))
    return path


def test_json_has_every_figure(tiny_checkpoint: Path, long_piece: Path) -> None:
    found = one_json(dsmr("eval", tiny_checkpoint, "--data", long_piece, "--json"))
    assert set(found) == KEYS
    assert found["pieces"] == 1 and found["tokens"] > 9216
    assert sum(row["tokens"] for row in found["by_position"]) == found["tokens"]
    figures = {"from", "to", "pieces", "tokens", "nats_per_token", "perplexity"}
    assert all(set(row) == figures and row["pieces"] == 1 for row in found["by_position"])
    nats = found["nats_per_token"] * found["tokens"]
    assert found["nats_per_note"] * found["notes"] == pytest.approx(nats)
    assert found["nats_per_second"] * found["seconds"] == pytest.approx(nats)
    assert [row["retain"] for row in found["truncation"]] == [1024, 4096, 8192, 16384]
    # the tiny network's horizons are 70, 5 and 1: nothing is read beyond 76 tokens
    for row in found["truncation"]:
        assert row["pieces"] == 0 or abs(row["increase"]) < 1e-5
    assert found["krcu"]["reset_at"] == 8192 and found["krcu"]["pieces"] == 1
    first, *later = found["krcu"]["bins"]
    assert abs(first["increase"]) > 1e-4 and later
    assert all(abs(row["increase"]) < 1e-5 for row in later)
    assert found["schedule"]["horizons"] == [70, 5, 1] and found["state_bytes"] == 76 * 2 * 2 * 16 * 4


def test_tables_and_pictures(tiny_checkpoint: Path, long_piece: Path, tmp_path: Path) -> None:
    result = dsmr("eval", tiny_checkpoint, "--data", long_piece, "--plots", tmp_path / "new" / "plots")
    assert result.exit_code == 0, result.stderr
    for words in (
        "per second of music",
        "70,5,1 = 76 tokens",
        "8,192 – 16,384",
        "history kept",
        "tokens, 1 piece",
        "KRCU: mean of these",
    ):
        assert words in result.stdout
    assert sorted(path.name for path in (tmp_path / "new" / "plots").iterdir()) == sorted(PICTURES)
    # stdout is for results: the files are named on stderr
    assert "reset-curve.svg" in result.stderr and "reset-curve" not in result.stdout


def test_pieces_that_are_too_short_are_said_to_be(tiny_checkpoint: Path, short_piece: Path) -> None:
    result = dsmr("eval", tiny_checkpoint, "--data", short_piece)
    assert result.exit_code == 0, result.stderr
    assert "no piece is longer than 8,192 tokens: no KRCU" in result.stdout
    found = one_json(dsmr("eval", tiny_checkpoint, "--data", short_piece, "--json"))
    assert found["krcu"] == {"reset_at": 8192, "pieces": 0, "auc": None, "bins": []}


def test_plots_that_cannot_be_written_are_refused_before_the_work(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("taken")
    arguments = ("eval", tiny_checkpoint, "--data", tmp_path / "not-even-looked-at")
    refused(dsmr(*arguments, "--plots", tmp_path / "file"), "file", "choose another folder")
    refused(dsmr(*arguments, "--plots", tmp_path / "file" / "plots"), "plots", "choose another folder")


def test_plots_without_matplotlib_name_the_extra(
    tiny_checkpoint: Path, short_piece: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec

    def find_spec(name: str, *rest: Any) -> Any:
        return None if name == "matplotlib" else real(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # type: ignore[arg-type]
    arguments = ("eval", tiny_checkpoint, "--data", short_piece)
    refused(dsmr(*arguments, "--plots", tmp_path / "p"), "matplotlib", "pip install 'dsmr-export[train]'")
    assert not (tmp_path / "p").exists()
    assert dsmr(*arguments).exit_code == 0  # figures alone need none


def test_a_checkpoint_with_another_tokenizer(
    tiny_checkpoint: Path, short_piece: Path, tmp_path: Path
) -> None:
    from miditok import MIDILike, TokenizerConfig

    from dsmr_export.model import tokenizer as tokens

    shutil.copytree(tiny_checkpoint, tmp_path / "c")
    config = TokenizerConfig(
        pitch_range=(21, 108),
        beat_res={(0, 2): 50},
        num_velocities=16,
        special_tokens=["PAD", "BOS", "EOS"],
        use_pitchdrum_tokens=False,
        use_time_signatures=False,
        use_programs=False,
    )
    (tmp_path / "c" / "tokenizer.json").unlink()
    tokens.save(MIDILike(config), tmp_path / "c" / "tokenizer.json")
    refused(
        dsmr("eval", tmp_path / "c", "--data", short_piece),
        "295 tokens",
        "vocab_size of 311",
        "belong together",
    )
    values = json.loads((tmp_path / "c" / "tokenizer.json").read_text())
    (tmp_path / "c" / "tokenizer.json").write_text(json.dumps(values | {"tokenization": "REMI"}))
    refused(dsmr("eval", tmp_path / "c", "--data", short_piece), "tokenizer.json")


def test_no_piece_that_can_be_read(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(dsmr("eval", tiny_checkpoint, "--data", tmp_path / "empty"), "empty", "no MIDI files")
    (tmp_path / "empty" / "broken.mid").write_bytes(b"MThd and no more")
    refused(dsmr("eval", tiny_checkpoint, "--data", tmp_path / "empty"), "none of")


def test_a_device_that_is_not_there(tiny_checkpoint: Path, short_piece: Path) -> None:
    arguments = ("eval", tiny_checkpoint, "--data", short_piece)
    refused(dsmr(*arguments, "--device", "no-such-device"), "--device no-such-device", "use cpu")
