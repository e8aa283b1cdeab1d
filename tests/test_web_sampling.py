"""The host library's random numbers and draws in a real browser: numpy's, number for number."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from dsmr_export.runtime.events import EventTable
from dsmr_export.runtime.performer import pace_bias, seeded
from dsmr_export.runtime.sampling import Sampling, sample
from tests.chromium import Page
from tests.web_host import run
from tests.web_music import EVENTS, TABLE, b64, both_tables, refusal

pytestmark = pytest.mark.slow  # thousands of draws in a browser

SEEDS = [0, 1, 7, 42, 2**31, 2**32 - 1, 2**32, 2**53 - 1, 2**64 - 1, 2**64, 10**30, 2**128 + 3, 2**300 + 11]


def written(rng: np.random.Generator) -> dict[str, Any]:
    """A generator's state with its long numbers as text, which JavaScript's JSON keeps exact."""
    state: dict[str, Any] = dict(rng.bit_generator.state)
    return state | {"state": {name: str(value) for name, value in state["state"].items()}}


def test_the_generator_is_numpys(web_page: Page) -> None:
    found = run(
        web_page,
        """const text = ({ state, inc }) => ({ state: String(state), inc: String(inc) });
           const written = all => ({ ...all, state: text(all.state) });
           return given.seeds.map(seed => {
             const small = Number(seed) <= Number.MAX_SAFE_INTEGER;
             const rng = host.Pcg64.seeded(small ? Number(seed) : BigInt(seed));
             const begins = written(rng.state());
             const numbers = Array.from({ length: 500 }, () => rng.random());
             const again = host.Pcg64.fromState(rng.state());
             return [begins, numbers, [rng.random(), again.random()], written(rng.state())];
           });""",
        seeds=[str(seed) for seed in SEEDS],
    )
    for seed, (begins, numbers, goes_on, ends) in zip(SEEDS, found, strict=True):
        rng = seeded(seed)
        assert begins == written(rng)
        assert numbers == [rng.random() for _ in range(500)]
        assert goes_on == [rng.random()] * 2
        assert ends == written(rng)


def test_the_generator_goes_on_where_numpys_was(web_page: Page) -> None:
    """Its state as a saved one has it; half a number that a 32-bit draw left is kept."""
    rng = np.random.default_rng(3)
    rng.integers(5, dtype=np.uint32)
    before = written(rng)
    assert before["has_uint32"] == 1
    found = run(
        web_page,
        """const { state, ...rest } = given.before;
           const long = { state: BigInt(state.state), inc: BigInt(state.inc) };
           const rng = host.Pcg64.fromState({ ...rest, state: long });
           const kept = rng.state();
           return [rng.random(), kept.has_uint32, kept.uinteger];""",
        before=before,
    )
    assert found == [rng.random(), 1, before["uinteger"]]


def test_seeds_and_states_that_are_none(web_page: Page) -> None:
    seeds, states = run(
        web_page,
        """const good = host.Pcg64.seeded(1).state();
           const bad = [null, {}, { ...good, bit_generator: 'MT19937' }, { ...good, has_uint32: -1 },
                        { ...good, state: { state: -1n, inc: 1n } },
                        { ...good, state: { state: 1n << 128n, inc: 1n } }];
           return [await Promise.all([-1, -1n, 1.5, NaN].map(seed => refusal(() => host.Pcg64.seeded(seed)))),
                   await Promise.all(bad.map(state => refusal(() => host.Pcg64.fromState(state))))];""",
    )
    assert seeds[0][1] == seeds[1][1] == refusal(seeded, -1) + "."
    assert [kind for kind, _, _ in seeds] == ["input"] * 4
    assert [kind for kind, _, _ in states] == ["state"] * 6


NAMES = {"temperature": "temperature", "top_k": "topK", "top_p": "topP", "min_p": "minP"}
SETTINGS = [
    Sampling(),
    Sampling(temperature=0),
    Sampling(top_p=0.98),
    Sampling(temperature=0.7, top_p=0.9),
    Sampling(temperature=1.4, top_k=12),
    Sampling(top_k=1),
    Sampling(top_k=1000, min_p=0.05),
    Sampling(temperature=0.9, top_k=40, top_p=0.95, min_p=0.001),
    Sampling(temperature=1e-3),
    Sampling(top_p=1e-6),
    Sampling(min_p=1.0),
    Sampling(temperature=50.0, top_p=0.5),
]
DRAWS = """
const size = given.size;
const logits = new Float32Array(bytes(given.logits).buffer);
const masks = bytes(given.masks);
const bias = new Float32Array(bytes(given.bias).buffer);
return given.settings.map((sampling, place) => {
  const rng = host.Pcg64.seeded(place);
  const drawn = [];
  for (let at = 0; at < logits.length; at += size) {
    const row = logits.subarray(at, at + size);
    const mask = masks.subarray(at, at + size);
    for (let time = 0; time < given.times; time++)
      for (const [allowed, added] of [[], [mask], [mask, bias], [undefined, bias]])
        drawn.push(host.sample(row, sampling, rng, allowed, added));
  }
  return [drawn, rng.random()];
});
"""


def in_typescript(sampling: Sampling) -> dict[str, float]:
    return {name: getattr(sampling, one) for one, name in NAMES.items()}


def test_the_same_draws_are_the_same_tokens(web_page: Page) -> None:
    """5,000 draws, of flat rows and steep ones, and of rows that are full of ties, under masks and a bias.

    The exponentials of the two differ by a unit in the last place at times: a draw, or an edge that no tie is
    at, feels that once in 10**13.
    """
    rng, size, times = np.random.default_rng(8), len(TABLE), 8
    logits = (rng.normal(size=(12, size)) * np.repeat([0.0, 0.3, 1, 3, 10, 40], 2)[:, None]).astype(
        np.float32
    )
    logits[::2] = np.round(logits[::2])  # ties
    logits[3, 5:300] = -np.inf
    masks = rng.random(logits.shape) < np.linspace(0.02, 0.9, len(logits))[:, None]
    masks[:, 7] = True
    bias = pace_bias(TABLE, 0.3)
    found = run(
        web_page,
        DRAWS,
        size=size,
        times=times,
        logits=b64(logits.tobytes()),
        masks=b64(masks.astype(np.uint8).tobytes()),
        bias=b64(bias.tobytes()),
        settings=[in_typescript(sampling) for sampling in SETTINGS],
    )
    for place, sampling in enumerate(SETTINGS):
        draws, drawn = np.random.default_rng(place), []
        for row, mask in zip(logits, masks, strict=True):
            for _ in range(times):
                drawn += [sample(row, sampling, draws), sample(row, sampling, draws, mask)]
                drawn += [sample(row + bias, sampling, draws, mask), sample(row + bias, sampling, draws)]
        assert found[place] == [drawn, draws.random()], sampling


def test_the_draws_at_both_ends(web_page: Page) -> None:
    """0 gives the first token that can be, and the largest below 1 the last one."""
    found = run(
        web_page,
        """const row = Float32Array.from([-Infinity, 1, 0, -Infinity]);
           const settings = { temperature: 1, topK: 0, topP: 1, minP: 0 };
           return [0, 1 - 2 ** -53].map(draw => host.sample(row, settings, { random: () => draw }));""",
    )
    assert found == [1, 2]


def test_logits_that_are_no_numbers(web_page: Page) -> None:
    found = run(
        web_page,
        """const row = Float32Array.from([1, NaN, 0]);
           const all = Float32Array.from([-Infinity, -Infinity]);
           const settings = { temperature: 1, topK: 2, topP: 0.9, minP: 0.1 };
           return [await refusal(() => host.sample(row, settings, Math)),
                   await refusal(() => host.sample(row, { ...settings, temperature: 0 }, Math)),
                   await refusal(() => host.sample(all, settings, Math))];""",
    )
    with np.errstate(invalid="ignore"):
        logits = np.array([1, np.nan, 0], np.float32)
        expected = refusal(sample, logits, Sampling(), np.random.default_rng(0))
    for kind, said, _ in found:
        assert kind == "bundle" and said.casefold() == f"{expected}.".casefold()


BAD_SETTINGS: list[tuple[str, float]] = [
    ("temperature", -1),
    ("top_k", -1),
    ("top_k", 1.5),
    ("top_p", 0),
    ("top_p", 1.5),
    ("min_p", -0.5),
    ("min_p", 1.5),
]


def test_settings_that_make_no_sense(web_page: Page) -> None:
    good = in_typescript(Sampling())
    accepted, found, others = run(
        web_page,
        """const check = sampling => refusal(() => host.checkSampling(sampling));
           const table = host.EventTable.fromManifest(given.events);
           const others = [check({ ...given.good, temperature: NaN }), check({ ...given.good, topP: NaN }),
                           refusal(() => host.paceBias(table, Infinity))];
           const bad = await Promise.all(given.bad.map(check));
           return [await check(given.good), bad, await Promise.all(others)];""",
        good=good,
        bad=[good | {NAMES[name]: value} for name, value in BAD_SETTINGS],
        events=EVENTS,
    )
    assert accepted is None
    assert all(kind == "input" for kind, _, _ in [*found, *others])
    for (name, value), (_, said, _) in zip(BAD_SETTINGS, found, strict=True):
        options: dict[str, Any] = {name: value}
        assert said == re.sub("^(top|min)_", r"\1-", refusal(Sampling, **options)) + "."


@both_tables
def test_a_pace_adds_the_same(web_page: Page, events: dict[str, Any]) -> None:
    table, paces = EventTable.from_json(events), [0.0, 0.3, -1.0, 2.5]
    found = run(
        web_page,
        """const table = host.EventTable.fromManifest(given.events);
           return given.paces.map(pace => Array.from(host.paceBias(table, pace)));""",
        events=events,
        paces=paces,
    )
    assert found == [pace_bias(table, pace).tolist() for pace in paces]
