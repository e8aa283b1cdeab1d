"""The network's first property: no cut of a stream changes its logits, and they are what the formulas say.

Compared with `tests/reference.py`, which shares no code with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from dsmr_export.model import network as network_module
from dsmr_export.model.config import ModelConfig
from dsmr_export.model.network import DSMR, RecurrentState, Windows, rope_tables
from dsmr_export.state import portable_state, state_bytes
from tests.reference import forward

V = 23
ULP = 2.0**-52
"""Of float64 at 1: an angle at position t is known to about t of them."""


def config(layers: int, heads: int = 4, kv_heads: int = 2, head_dim: int = 16) -> ModelConfig:
    return ModelConfig(layers, heads, kv_heads, head_dim, d_model=32, d_ff=40, vocab_size=V)


def network(shape: ModelConfig, horizons: Sequence[int], seed: int = 0) -> DSMR:
    """Float64, with weights large enough that attention is far from uniform and logits are in the tens."""
    made = DSMR(shape, horizons).double().eval()
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            noise = torch.from_numpy(rng.normal(size=tuple(weight.shape)))
            gain = {"embedding.weight": 3.0}.get(name, 2.0 if "qkv" in name else 1.0)
            weight.copy_(1 + 0.1 * noise if weight.dim() == 1 else gain * noise / weight.shape[1] ** 0.5)
    return made


def reference(model: DSMR, ids: Tensor, start: int = 0) -> np.ndarray:
    shape = model.config
    return forward(
        {name: weight.double().numpy() for name, weight in model.state_dict().items()},
        ids.tolist(),
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        horizons=model.horizons,
        rope_base=shape.rope_base,
        norm_eps=shape.norm_eps,
        start=start,
    )


def tokens(length: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, V, length))


@torch.no_grad()
def read(model: DSMR, ids: Tensor, cuts: Sequence[int], start: int = 0) -> np.ndarray:
    """Logits [N, V] of ids [N], read in segments of these lengths."""
    state, parts = model.empty_state(position=start), []
    for segment in ids[None].split(list(cuts), dim=1):
        logits, state = model(segment, state)
        parts.append(logits[0])
    return torch.cat(parts).numpy()


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max())


@st.composite
def streams(draw: st.DrawFn) -> tuple[DSMR, Tensor, list[int], int]:
    """A network, a sequence, cuts that sum to its length, and the position of its first token."""
    heads = draw(st.sampled_from([2, 4]))
    shape = config(
        layers=draw(st.integers(1, 3)),
        heads=heads,
        kv_heads=draw(st.sampled_from([1, 2, heads])),
        head_dim=draw(st.sampled_from([16, 32, 48])),
    )
    # Short horizons evict within a segment, long ones never; a pass over more than 64 tokens goes by blocks.
    horizon = st.one_of(st.integers(1, 8), st.integers(1, 200))
    horizons = draw(st.lists(horizon, min_size=shape.layers, max_size=shape.layers))
    length = draw(st.integers(1, 150))
    marks = sorted(draw(st.sets(st.integers(1, length - 1), max_size=12))) if length > 1 else []
    cuts = [b - a for a, b in zip([0, *marks], [*marks, length], strict=True)]
    seed = draw(st.integers(0, 2**16))
    start = draw(st.one_of(st.just(0), st.integers(0, 10**9)))
    return network(shape, horizons, seed), tokens(length, seed), cuts, start


@given(streams())
@settings(max_examples=40)
def test_any_cut_is_one_pass_is_the_reference(stream: tuple[DSMR, Tensor, list[int], int]) -> None:
    model, ids, cuts, start = stream
    expected = reference(model, ids, start)
    whole, cut = read(model, ids, [len(ids)], start), read(model, ids, cuts, start)
    assert distance(cut, whole) <= 1e-9
    # Both compute the same angles, but each rounds them in its own way: by `start` units in the last place.
    angles = 100 * start * ULP
    assert distance(whole, expected) <= 1e-9 + angles
    single = model.float()
    bound = 1e-5 * max(1.0, float(np.abs(expected).max())) + angles
    assert distance(read(single, ids, [len(ids)], start), expected) <= bound
    assert distance(read(single, ids, cuts, start), expected) <= bound


def test_token_by_token_is_one_pass_by_blocks() -> None:
    model, ids = network(config(2), [3, 70]), tokens(200)
    whole = read(model, ids, [200])
    assert distance(read(model, ids, [1] * 200), whole) <= 1e-9
    assert distance(read(model, ids, [75, 125]), whole) <= 1e-9
    assert distance(whole, reference(model, ids)) <= 1e-9


def test_where_a_stream_begins_does_not_matter() -> None:
    """Rotary positions are relative; only the rounding of an angle at 10^9 is left."""
    model, ids = network(config(2), [5, 40]), tokens(60)
    assert distance(read(model, ids, [60], start=10**9), read(model, ids, [60])) < 1e-5
    assert distance(read(model.float(), ids, [20, 40], start=10**9), read(model, ids, [60])) < 1e-4


def test_angles_far_out_are_those_of_whole_turns() -> None:
    """The first pair turns by one radian a position: compared with Python's own argument reduction."""
    position = torch.tensor([0, 1, 10**9, 10**12 + 1])
    cos, sin = rope_tables(position, 16, 10_000.0, torch.float32)
    assert cos.shape == sin.shape == (4, 8) and cos.dtype == torch.float32
    np.testing.assert_allclose(cos[:, 0], [np.cos(float(p)) for p in position], atol=1e-7)
    np.testing.assert_allclose(sin[:, 0], [np.sin(float(p)) for p in position], atol=1e-7)


# Windows


@given(st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(0, 100))
@settings(max_examples=15)
def test_a_token_reaches_as_far_as_the_horizons_add_up_and_no_further(horizons: list[int], seed: int) -> None:
    model, reach = network(config(len(horizons)), horizons, seed), sum(horizons)
    ids = tokens(reach + 6, seed)
    other = ids.clone()
    other[0] = (ids[0] + 1) % V
    cuts = [2, len(ids) - 2]
    difference = np.abs(read(model, ids, cuts) - read(model, other, cuts)).max(axis=1)
    assert (difference[: reach + 1] > 0).all()
    assert (difference[reach + 1 :] == 0).all()


def test_the_oldest_row_is_seen_by_one_query() -> None:
    """Window = horizon + 1: the next token still sees key t - h, the one after it no longer does."""
    model, ids = network(config(1), [6]), tokens(20)
    with torch.no_grad():
        _, state = model(ids[None, :16], model.empty_state())
        logits, _ = model(ids[None, 16:], state)
        for past in state.layers[0]:
            past[:, :, 0] += 1.0
        changed, _ = model(ids[None, 16:], state)
    difference = (logits - changed).abs().amax(dim=(0, 2))
    assert difference[0] > 0
    assert difference[1:].tolist() == [0, 0, 0]


def test_rows_older_than_the_stream_are_never_read() -> None:
    model, ids = network(config(2), [8, 30]), tokens(12)
    clean = model.empty_state()
    rubbish = RecurrentState(
        [(torch.full_like(k, 1e6), torch.full_like(v, 1e6)) for k, v in clean.layers],
        clean.position,
        clean.length,
    )
    with torch.no_grad():
        assert torch.equal(model(ids[None], rubbish)[0], model(ids[None], clean)[0])


# Lanes


def test_lanes_of_different_length_are_single_lanes() -> None:
    """Three lanes; the second piece ends early and its lane goes on with another, the third lane later."""
    model = network(config(2), [5, 33])
    first, second, third, fourth, fifth = (tokens(n, seed=n) for n in (48, 16, 32, 32, 16))
    rows = [first, torch.cat((second, fourth)), torch.cat((third, fifth))]
    resets = {16: [False, True, False], 32: [False, False, True]}
    state, parts = model.empty_state(3), []
    with torch.no_grad():
        for start in range(0, 48, 16):
            state = state.reset(torch.tensor(resets.get(start, [False] * 3)))
            logits, state = model(torch.stack(rows)[:, start : start + 16], state)
            parts.append(logits)
    lanes = torch.cat(parts, dim=1).numpy()
    for lane, pieces in enumerate([[first], [second, fourth], [third, fifth]]):
        alone = np.concatenate([read(model, piece, [len(piece)]) for piece in pieces])
        assert distance(lanes[lane], alone) <= 1e-9
    assert state.position.tolist() == state.length.tolist() == [48, 32, 16]


def test_lanes_may_stand_at_different_positions() -> None:
    model, ids = network(config(1), [9]), tokens(10)
    state = model.empty_state(2)
    state.position = torch.tensor([0, 10**9])
    with torch.no_grad():
        logits, _ = model(ids.repeat(2, 1), state)
    assert distance(logits[0].numpy(), read(model, ids, [10])) <= 1e-9
    assert distance(logits[1].numpy(), read(model, ids, [10], start=10**9)) <= 1e-9


# How attention is carried out


@pytest.mark.parametrize("ages", [[0, 0, 0], [500, 500, 500], [0, 11, 500], [40, 40, 3]])
@pytest.mark.parametrize("horizon", [1, 20, 130, 1030])
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_blocks_and_shared_masks_change_neither_values_nor_gradients(
    ages: list[int], horizon: int, kv_heads: int
) -> None:
    """Against one call over all keys under the whole mask, which is what the portable graph does."""
    rng = torch.Generator().manual_seed(horizon)
    shape = {"generator": rng, "dtype": torch.float64}
    q = torch.randn(3, 4, 150, 16, **shape, requires_grad=True)
    keys, values = (
        torch.randn(3, kv_heads, horizon + 150, 16, **shape, requires_grad=True) for _ in range(2)
    )
    past_length = torch.tensor(ages)
    toward = torch.randn(3, 4, 150, 16, **shape)
    whole = network_module._attend(q, keys, values, network_module._window_mask(150, horizon, past_length))
    expected = torch.autograd.grad((whole * toward).sum(), (q, keys, values))
    for known in (ages, None):
        windows = Windows(torch.empty(0), torch.empty(0), past_length, known)
        found = network_module._attend_blocks(q, keys, values, windows, horizon)
        assert torch.allclose(found, whole, rtol=0, atol=1e-12)
        gradients = torch.autograd.grad((found * toward).sum(), (q, keys, values))
        for one, other in zip(gradients, expected, strict=True):
            assert torch.allclose(one, other, rtol=0, atol=1e-12)


def test_a_mask_is_one_block_wide_and_shared() -> None:
    windows = Windows(torch.empty(0), torch.empty(0), torch.tensor([900, 0]), [900, 0])
    q, keys = torch.randn(2, 4, 512, 16), torch.randn(2, 2, 300 + 512, 16)
    for _ in range(2):  # as two layers would
        network_module._attend_blocks(q, keys, keys, windows, 300)
    assert [tuple(mask.shape) for mask in windows.bands.values()] == [(2 * 64, 300 + 64)]


def test_compiled_once_for_all_segments() -> None:
    """Full graphs, and one of them, whatever the lanes do; the backend that only counts runs it as it is."""
    counter = CompileCounter()
    torch._dynamo.reset()
    model = network(config(2), [5, 33])
    compiled = torch.compile(model, dynamic=False, backend=counter, fullgraph=True)
    ids = tokens(2 * 400).reshape(2, 400)
    state, other = model.empty_state(2), model.empty_state(2)
    for index, segment in enumerate(ids.split(100, dim=1)):
        lanes = torch.tensor([False, index == 2])
        logits, state = compiled(segment, state.reset(lanes))
        expected, other = model(segment, other.reset(lanes))
        state, other = state.detach().compact(), other.detach()
        assert torch.allclose(logits, expected, rtol=0, atol=1e-9)
    assert counter.frame_count == 1


# Precision


def test_under_autocast_the_state_is_bf16() -> None:
    """Half the bytes, whatever dtype it began with; keys are rotated in float32 and rounded once."""
    model, ids = network(config(2), [40, 9]).float(), tokens(120).reshape(2, 60)
    with torch.no_grad():
        exact, full = model(ids[:, :30], model.empty_state(2))
        states = []
        for dtype in (None, torch.bfloat16):
            with torch.autocast("cpu", torch.bfloat16):
                logits, state = model(ids[:, :30], model.empty_state(2, dtype=dtype))
            assert {tensor.dtype for pair in state.layers for tensor in pair} == {torch.bfloat16}
            assert 2 * state.nbytes == full.nbytes
            # products of bf16 keep 8 bits: 1/256 of the largest logit, a few times over for two layers
            assert (logits.float() - exact).abs().max() < 0.06 * exact.abs().max()
            states.append(state)
        for one, other in zip(*(state.layers for state in states), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_wide_state_is_read_in_the_weights_precision() -> None:
    model, ids = network(config(1), [9]).float(), tokens(20)[None]
    with torch.no_grad():
        _, state = model(ids, model.empty_state(dtype=torch.bfloat16))
    assert state.layers[0][0].dtype == torch.float32


# State and gradients


def test_no_gradient_reaches_a_previous_segment() -> None:
    model, ids = network(config(2), [4, 20]), tokens(30)
    _, state = model(ids[None, :15], model.empty_state())
    keys = state.layers[0][0]
    assert keys.requires_grad  # attached: it is the next call that cuts
    logits, _ = model(ids[None, 15:], state)
    assert torch.autograd.grad(logits.sum(), keys, retain_graph=True, allow_unused=True) == (None,)
    found = torch.autograd.grad(logits.sum(), list(model.parameters()))
    logits, _ = model(ids[None, 15:], state.detach())
    alone = torch.autograd.grad(logits.sum(), list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(found, alone, strict=True))


def test_a_state_that_was_passed_in_is_not_changed() -> None:
    model, ids = network(config(1), [4]), tokens(10)
    with torch.no_grad():
        _, state = model(ids[None], model.empty_state())
        before = [tensor.clone() for pair in state.layers for tensor in pair]
        first, _ = model(ids[None], state)
        again, _ = model(ids[None], state)
    assert torch.equal(first, again)
    assert all(torch.equal(a, b) for a, b in zip(before, (t for p in state.layers for t in p), strict=True))
    assert state.length.tolist() == [10]


def test_bytes_of_the_state_are_those_of_the_schedule() -> None:
    shape, horizons = config(3, heads=4, kv_heads=1, head_dim=48), [7, 100, 1]
    state = DSMR(shape, horizons).empty_state()
    assert state.nbytes == sum(horizons) * shape.kv_bytes_per_token
    assert state.nbytes == state_bytes(portable_state(horizons, shape.kv_heads, shape.head_dim))


def test_initialization_is_seeded_and_scaled() -> None:
    shape = ModelConfig(layers=8, heads=4, kv_heads=4, head_dim=32, d_model=128, d_ff=256, vocab_size=100)
    one, two = DSMR(shape, [4] * 8), DSMR(shape, [4] * 8)
    for model in (one, two):
        model.initialize(torch.Generator().manual_seed(3))
    weights = one.state_dict()
    assert all(torch.equal(weight, two.state_dict()[name]) for name, weight in weights.items())
    # 128·100 normal samples: their standard deviation is within 3 % with a probability of 1 - 1e-5.
    assert float(weights["embedding.weight"].std()) == pytest.approx(0.02, rel=0.03)
    assert float(weights["layers.0.down.weight"].std()) == pytest.approx(0.02 / 4, rel=0.03)
    assert float(weights["layers.7.out.weight"].std()) == pytest.approx(0.02 / 4, rel=0.03)
    assert weights["norm.weight"].tolist() == [1.0] * 128


def test_one_horizon_a_layer() -> None:
    with pytest.raises(ValueError, match="2 horizons for 3 layers"):
        DSMR(config(3), [4, 4])
