"""A checkpoint comes back as it was saved; a damaged one is refused in one line that says what is wrong."""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dsmr_export import schedule as schedules
from dsmr_export.errors import CheckpointError, OutputError
from dsmr_export.model import checkpoint
from dsmr_export.model import tokenizer as tokens
from dsmr_export.model.config import ModelConfig
from dsmr_export.model.network import DSMR
from tests.reference import forward

SHAPE = ModelConfig(layers=2, heads=4, kv_heads=2, head_dim=16, d_model=32, d_ff=48, vocab_size=311)
SCHEDULE = schedules.build("12,5", 2)
IDS = torch.tensor([[1, 40, 250, 7, 300, 9, 5, 44]])
TOKENIZER_JSON = tokens.to_json(tokens.default_tokenizer())


@pytest.fixture
def network() -> DSMR:
    made = DSMR(SHAPE, SCHEDULE.horizons).eval()
    made.initialize(torch.Generator().manual_seed(0))
    return made


@pytest.fixture
def saved(network: DSMR, tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint"
    checkpoint.save(
        path, network, SCHEDULE, TOKENIZER_JSON, about={"data": "made up", "licence": "MIT", "pace": 0.1}
    )
    return path


@torch.no_grad()
def logits(network: DSMR) -> torch.Tensor:
    return network(IDS, network.empty_state())[0][0]


def edit_config(path: Path, **changes: Any) -> None:
    file = path / "config.json"
    values = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in values.items() if value != "absent"}))


def edit_weights(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors")


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


def test_saved_and_loaded_gives_the_same_logits(network: DSMR, saved: Path) -> None:
    loaded = checkpoint.load(saved)
    assert torch.equal(logits(loaded.network()), logits(network))
    assert (loaded.config, loaded.schedule) == (SHAPE, SCHEDULE)
    assert (loaded.data, loaded.licence, loaded.pace) == ("made up", "MIT", 0.1)
    assert loaded.tokenizer_path.read_text() == TOKENIZER_JSON
    assert len(loaded.tokenizer()) == 311
    assert sorted(file.name for file in saved.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]


def test_the_files_alone_give_the_logits_through_numpy(network: DSMR, saved: Path) -> None:
    """What docs/checkpoint.md promises to other trainers and readers."""
    values = json.loads((saved / "config.json").read_text())
    tensors = {name: tensor.numpy() for name, tensor in load_file(saved / "model.safetensors").items()}
    expected = forward(
        tensors,
        IDS[0].tolist(),
        heads=values["heads"],
        kv_heads=values["kv_heads"],
        head_dim=values["head_dim"],
        horizons=[int(h) for h in values["schedule"].split(",")],
        rope_base=values["rope_base"],
        norm_eps=values["norm_eps"],
    )
    np.testing.assert_allclose(logits(network).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_as_the_float32_of_its_values(
    network: DSMR, tmp_path: Path, dtype: torch.dtype
) -> None:
    checkpoint.save(tmp_path, network, SCHEDULE, TOKENIZER_JSON, dtype)
    assert {t.dtype for t in load_file(tmp_path / "model.safetensors").values()} == {dtype}
    loaded = checkpoint.load(tmp_path)
    assert {tensor.dtype for tensor in loaded.weights.values()} == {torch.float32}
    rounded = DSMR(SHAPE, SCHEDULE.horizons).eval()
    rounded.load_state_dict({n: t.to(dtype).float() for n, t in network.state_dict().items()})
    assert torch.equal(logits(loaded.network()), logits(rounded))


def test_another_schedule_takes_the_same_weights(saved: Path) -> None:
    loaded = checkpoint.load(saved)
    longer = loaded.network(schedules.explicit([30, 30]))
    assert longer.horizons == (30, 30)
    # 8 tokens fit into both windows of (30, 30), not into (12, 5)
    difference = (logits(longer) - logits(loaded.network())).abs().amax(dim=1)
    assert difference[:6].max() < 1e-6
    assert difference[6:].min() > 1e-4


def test_the_tensors_are_those_that_the_document_lists() -> None:
    """Shapes by hand from docs/checkpoint.md: (heads + 2·kv_heads)·D = 128 rows of q, k, v."""
    layer = {
        "attention_norm.weight": (32,),
        "qkv.weight": (128, 32),
        "out.weight": (32, 64),
        "mlp_norm.weight": (32,),
        "up.weight": (48, 32),
        "down.weight": (32, 48),
    }
    assert checkpoint.expected_shapes(SHAPE) == {
        "embedding.weight": (311, 32),
        **{f"layers.{i}.{name}": shape for i in range(2) for name, shape in layer.items()},
        "norm.weight": (32,),
    }


# What is refused


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    assert f"{name} is missing; a checkpoint is a folder with config.json" in refusal(saved)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert "config.json is missing" in refusal(tmp_path / "nowhere")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_truncated_weights(saved: Path, share: float) -> None:
    file = saved / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    message = refusal(saved)
    assert "model.safetensors is truncated or not safetensors" in message
    assert message.endswith("copy or download it again")


def test_a_pickle_is_never_loaded(saved: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "sprung",)

    (saved / "model.safetensors").write_bytes(pickle.dumps(Trap()))
    assert "not safetensors" in refusal(saved)
    torch.save({"embedding.weight": Trap()}, saved / "model.safetensors")
    assert "not safetensors" in refusal(saved)
    assert not (tmp_path / "sprung").exists()


def test_a_tensor_of_another_shape_says_which_expected_and_got(saved: Path) -> None:
    edit_weights(saved, lambda t: t.update({"layers.1.qkv.weight": torch.zeros(96, 32)}))
    assert (
        "tensor layers.1.qkv.weight should be [128, 32], got [96, 32]: does config.json belong to it?"
        in refusal(saved)
    )


def test_a_missing_tensor(saved: Path) -> None:
    edit_weights(saved, lambda t: t.pop("layers.0.up.weight"))
    assert "model.safetensors lacks tensor layers.0.up.weight [48, 32]" in refusal(saved)


def test_unknown_tensors(saved: Path) -> None:
    edit_weights(saved, lambda t: t.update({"layers.0.qkv.bias": torch.zeros(128)}))
    assert "has tensors that this architecture does not know: layers.0.qkv.bias" in refusal(saved)


def test_a_tensor_of_another_type(saved: Path) -> None:
    edit_weights(saved, lambda t: t.update({"norm.weight": torch.ones(32, dtype=torch.float64)}))
    assert "tensor norm.weight is torch.float64; write float32, float16 or bfloat16" in refusal(saved)


def test_a_newer_format(saved: Path) -> None:
    edit_config(saved, format_version=2)
    assert "config.json has format_version 2; this version of dsmr-export reads 1: upgrade it" in refusal(
        saved
    )


def test_a_config_without_a_version_is_the_first_one(saved: Path) -> None:
    edit_config(saved, format_version="absent")
    assert checkpoint.load(saved).config == SHAPE


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"layers": "absent", "d_ff": "absent"}, "model config lacks layers, d_ff"),
        ({"layers": 0}, "layers must be a positive number, got 0"),
        ({"heads": "4"}, "heads must be a positive number, got '4'"),
        ({"heads": True}, "heads must be a positive number, got True"),
        ({"d_model": 32.5}, "d_model must be a whole number, got 32.5"),
        ({"rope_base": float("nan")}, "rope_base must be a positive number, got nan"),
        ({"head_dim": 24}, "head_dim must be a multiple of 16, got 24"),
        ({"kv_heads": 3}, "heads must be a multiple of kv_heads, got 4 and 3"),
        ({"pace": "calm"}, "pace must be a number, got 'calm'"),
        ({"schedule": "absent"}, "schedule must be a text such as 2048x2,256x6, got null"),
        ({"schedule": [12, 5]}, "schedule must be a text such as 2048x2,256x6, got [12, 5]"),
        ({"schedule": "12,5,5"}, "schedule 12,5,5 lists 3 horizons, the model has 2 layers"),
        ({"schedule": "twoscale"}, "unknown schedule 'twoscale'"),
    ],
)
def test_bad_config_values(saved: Path, changes: dict[str, Any], expected: str) -> None:
    edit_config(saved, **changes)
    assert expected in refusal(saved)


def test_a_tokenizer_of_another_vocabulary(tmp_path: Path) -> None:
    smaller = DSMR(dataclasses.replace(SHAPE, vocab_size=300), SCHEDULE.horizons)
    checkpoint.save(tmp_path, smaller, SCHEDULE, TOKENIZER_JSON)
    with pytest.raises(
        CheckpointError, match=r"tokenizer\.json has 311 tokens, config\.json .* of 300: they"
    ):
        checkpoint.load(tmp_path).tokenizer()


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b'{"layers": 2'])
def test_a_config_that_is_no_json(saved: Path, text: bytes) -> None:
    (saved / "config.json").write_bytes(text)
    assert "config.json is not readable JSON" in refusal(saved)


def test_a_config_that_is_no_object(saved: Path) -> None:
    (saved / "config.json").write_text("[1]")
    assert "config.json must hold a JSON object, got list" in refusal(saved)


def test_a_failed_save_leaves_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (saved / "model.safetensors").read_bytes()

    def full(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OutputError, match=r"model\.safetensors: cannot be written .*No space left"):
        checkpoint.save(saved, DSMR(SHAPE, SCHEDULE.horizons), SCHEDULE, TOKENIZER_JSON)
    assert (saved / "model.safetensors").read_bytes() == before
    assert len(list(saved.iterdir())) == 3
    checkpoint.load(saved)
