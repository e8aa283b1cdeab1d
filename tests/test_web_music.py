"""Notes, ids and masks in a real browser: the host library makes of the same input what the runtime in Python
does. The two share no code, so each is the other's oracle."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dsmr_export.runtime.events import Encoder, EventTable
from dsmr_export.runtime.grammar import Grammar
from dsmr_export.runtime.performance import KeyEvent, Note, Recorder, canonical, frame_at, to_events
from dsmr_export.runtime.performer import Paced
from tests.chromium import Page
from tests.web_host import run
from tests.web_music import EVENTS, RULES, TABLE, both_tables, flat, plain, refusal

pytestmark = pytest.mark.slow  # half a minute of cases in a browser


def storm(rng: np.random.Generator, table: EventTable, count: int) -> list[list[Any]]:
    """What a recorder may be told, in turns: keys, pedals and panic from several tracks and channels, clocks
    that jitter, pitches beyond the vocabulary; at times all ends, or goes on elsewhere."""
    low, high = table.pitch_range
    known = rng.choice(list(table.on_ids), 3, replace=False).tolist()
    names = ["noteOn", "noteOff", "pedal", "allOff", "releaseTrack", "advance", "finish", "resume"]
    chances = [0.4, 0.3, 0.12, 0.02, 0.02, 0.12, 0.01, 0.01]
    calls: list[list[Any]] = []
    frame = 0
    for name in rng.choice(names, count, p=chances).tolist():
        frame = max(frame + int(rng.choice([0, 0, 1, 2, 5, 30, 250, -2])), 0)
        channel, track = rng.integers(2, size=2).tolist()
        pitch = int(rng.choice(known if rng.random() < 0.98 else [low - 1, high + 1]))
        sounding = [(pitch, frame + place) for place, pitch in enumerate(known[:2])]
        arguments: dict[str, list[Any]] = {
            "noteOn": [frame, pitch, int(rng.choice([0, 1, 30, 64, 80, 127, 140])), channel, track],
            "noteOff": [frame, pitch, channel, track],
            "pedal": [frame, int(rng.choice([0, 63, 64, 127])), channel],
            "allOff": [frame, channel],
            "releaseTrack": [frame, track],
            "advance": [frame],
            "finish": [frame] if rng.random() < 0.5 else [],
            "resume": [frame + 9, sounding, [(pitch, int(rng.integers(2))) for pitch in known[:2]]],
        }
        calls.append([name, *arguments[name]])
        frame = {"finish": 0, "resume": frame + 9}.get(name, frame)
    return [*calls, ["finish"]]


def weathered(table: EventTable, calls: list[list[Any]]) -> list[Any]:
    """What each call gives, what the recorder then says of itself, and the ids."""
    recorder, encoder = Recorder(table.pitch_range), Encoder(table)
    methods: dict[str, Callable[..., list[KeyEvent]]] = {
        "noteOn": recorder.note_on,
        "noteOff": recorder.note_off,
        "pedal": recorder.pedal,
        "allOff": recorder.all_off,
        "releaseTrack": recorder.release_track,
        "advance": recorder.advance,
        "finish": recorder.finish,
    }
    found = []
    for name, *arguments in calls:
        events: list[KeyEvent] = []
        if name == "resume":
            frame, onsets, tracks = arguments
            recorder.resume(frame, dict(onsets), dict(tracks))
            ids = encoder.wait(frame)
        else:
            events = methods[name](*arguments)
            ids = [token for event in events for token in encoder.push(event)]
            if recorder.settled:
                ids += encoder.advance(recorder.frame)
        if name == "finish":
            encoder = Encoder(table)
        known = [recorder.frame, recorder.dropped, recorder.settled, sorted(recorder.owners().items())]
        found.append([[list(event) for event in events], known, ids, encoder.frame])
    return found


STORM = """
const table = host.EventTable.fromManifest(given.events);
return given.storms.map(calls => {
  const recorder = new host.Recorder(table.pitchRange);
  let encoder = new host.Encoder(table);
  return calls.map(([name, ...values]) => {
    let [events, ids] = [[], []];
    if (name === 'resume') {
      recorder.resume(values[0], new Map(values[1]), new Map(values[2]));
      ids = encoder.wait(values[0]);
    } else {
      events = recorder[name](...values);
      ids = events.flatMap(event => encoder.push(event));
      if (recorder.settled) ids.push(...encoder.advance(recorder.frame));
    }
    if (name === 'finish') encoder = new host.Encoder(table);
    const owners = [...recorder.owners()].sort(([a], [b]) => a - b);
    const known = [recorder.frame, recorder.dropped, recorder.settled, owners];
    const listed = events.map(({ frame, kind, pitch, velocity }) => [frame, kind, pitch, velocity]);
    return [listed, known, ids, encoder.frame];
  });
});
"""


@both_tables
def test_any_keys_and_pedals_are_the_same_events_and_ids(web_page: Page, events: dict[str, Any]) -> None:
    table, rng = EventTable.from_json(events), np.random.default_rng(11)
    storms = [storm(rng, table, 250) for _ in range(40)]
    found = run(web_page, STORM, events=events, storms=storms)
    expected = plain([weathered(table, calls) for calls in storms])
    for place, (one, other) in enumerate(zip(found, expected, strict=True)):
        for call, got, want in zip(storms[place], one, other, strict=True):
            assert got == want, (place, call)
    assert sum(len(step[2]) for one in found for step in one) > 4_000  # else it says little


@both_tables
def test_the_table_says_the_same(web_page: Page, events: dict[str, Any]) -> None:
    table, seconds = EventTable.from_json(events), [0, 0.0049, 0.005, 0.0051, 1.2345, 86_399.995]
    found = run(
        web_page,
        """const table = host.EventTable.fromManifest(given.events);
           const { length, stepMs, kinds, values, velocityIds, longestShift, pitchRange } = table;
           const ids = [table.onIds, table.offIds, table.shiftIds, table.velocities].map(ids => [...ids]);
           const special = ['pad', 'bos', 'eos', 'none'].map(name => table.specialId(name));
           const frames = given.seconds.map(seconds => host.frameAt(seconds, stepMs));
           const more = { velocityIds, longestShift, pitchRange, ids, special, frames };
           return { length, stepMs, kinds, values, ...more };""",
        events=events,
        seconds=seconds,
    )
    expected = {
        "length": len(table),
        "stepMs": table.step_ms,
        "kinds": table.kinds,
        "values": table.values,
        "velocityIds": table.velocity_ids,
        "longestShift": table.longest_shift,
        "pitchRange": table.pitch_range,
        "ids": [
            list(ids.items()) for ids in (table.on_ids, table.off_ids, table.shift_ids, table.velocities)
        ],
        "special": [table.special_id(name) for name in ("pad", "bos", "eos", "none")],
        "frames": [frame_at(second, table.step_ms) for second in seconds],
    }
    assert found == plain(expected)


def test_notes_and_their_events(web_page: Page) -> None:
    rng = np.random.default_rng(6)
    raw = rng.integers([0, 1, 21, 1], [300, 40, 109, 128], (300, 4)).tolist()
    notes = canonical(Note(start, start + length, p, v) for start, length, p, v in raw)
    found = run(
        web_page,
        """const note = ([start, end, pitch, velocity]) => ({ start, end, pitch, velocity });
           const events = host.toEvents(given.notes.map(note));
           return [events, host.toNotes(events)].map(all => all.map(one => Object.values(one)));""",
        notes=flat(notes),
    )
    assert found == [[list(event) for event in to_events(notes)], flat(notes)]


# The grammar


CROWDED = RULES | {
    "may_follow": RULES["may_follow"] | {"velocity": ["off", "on", "shift"]},
    "off_needs_sounding": False,
}
"""Other rules, under which a frame never ends by itself."""


def stroll(rng: np.random.Generator, table: EventTable, mask: Paced, count: int) -> list[int]:
    """Ids, nearly all of them allowed: at first as many in a frame as there may be, then of any kind."""
    kinds, ids = np.array(table.kinds), []
    for place in range(count):
        allowed = np.flatnonzero(mask.allowed)
        if place >= count // 3:
            token = rng.choice(allowed[kinds[allowed] == rng.choice(kinds[allowed])])
        else:
            token = min(allowed, key=lambda each: (kinds[each] in ("shift", "special"), each))
        ids.append(int(token if rng.random() < 0.99 else rng.integers(len(table))))
        mask.advance(ids[-1])
    return ids


WALK = """
const table = host.EventTable.fromManifest(given.events);
const seen = mask => [Array.from(mask.allowed).join(''), mask.state(), mask.frame];
return given.walks.map(({ ids, ordered, allowEos, turns }) => {
  const fresh = () => new host.Paced(new host.Grammar(table, given.rules, { ordered, allowEos }));
  let mask = fresh();
  return ids.map((id, place) => {
    if (turns[place] === 'copy') { const old = mask; mask = mask.copy(); old.advance(id); old.advance(5); }
    if (turns[place] === 'become') {
      const [old, other] = [mask, new host.Paced(new host.Grammar(table, given.rules))];
      (mask = fresh()).become(old);
      other.become(old);
      other.advance(id);
    }
    if (turns[place] === 'resume') {
      const state = JSON.parse(JSON.stringify(mask.state()));
      (mask = fresh()).resume(state);
    }
    if (turns[place] === 'reset') mask.reset();
    mask.advance(id);
    return seen(mask);
  });
});
"""


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("allow_eos", [True, False])
@both_tables
def test_the_same_ids_are_allowed(
    web_page: Page, events: dict[str, Any], allow_eos: bool, ordered: bool
) -> None:
    """The mask, the state as a saved one keeps it, and what sounds, after every id: of walks that crowd
    frames more than time allows, begin anew, and go on as copies."""
    table, rng = EventTable.from_json(events), np.random.default_rng(5)
    rules = RULES if events is EVENTS else CROWDED
    walks, expected, due = [], [], 0
    for _ in range(5):
        mask = Paced(Grammar(table, rules, allow_eos, ordered))
        ids = stroll(rng, table, mask.copy(), 700)
        turns = rng.choice(["", "copy", "become", "resume", "reset"], 700, p=[0.97, 0.01, 0.01, 0.005, 0.005])
        walks.append({"ids": ids, "ordered": ordered, "allowEos": allow_eos, "turns": turns.tolist()})
        seen: list[Any] = []
        for token, turn in zip(ids, turns, strict=True):
            if turn == "reset":
                mask.reset()
            mask.advance(token)
            state = mask.state()
            seen.append(["".join("01"[int(one)] for one in mask.allowed), state, mask.frame])
            due += state["here"] >= 128
        expected.append(seen)
    found = run(web_page, WALK, events=events, rules=rules, walks=walks)
    for number, (one, other) in enumerate(zip(found, plain(expected), strict=True)):
        for place, (got, want) in enumerate(zip(one, other, strict=True)):
            assert got == want, (number, place)
    assert due >= 2


def test_ids_that_are_none_change_nothing(web_page: Page) -> None:
    found = run(
        web_page,
        """const grammar = new host.Grammar(host.EventTable.fromManifest(given.events), given.rules);
           grammar.advance(given.on);
           const before = JSON.stringify(grammar.state());
           for (const id of [-1, given.events.tokens.length, 1e9, 0]) grammar.advance(id);
           return JSON.stringify(grammar.state()) === before;""",
        events=EVENTS,
        rules=RULES,
        on=TABLE.on_ids[60],
    )
    assert found is True


DAMAGED_STATES: list[dict[str, Any]] = [
    {"last": "chord"},
    {"onsets": [[5, 0]]},
    {"onsets": [[60]]},
    {"onsets": None},
    {"allowed": "00"},
    {"allowed": "x"},
    {"allowed": "00" * 39},
    {"pending": 5},
    {"frame": "x"},
]


def test_a_damaged_state_is_refused(web_page: Page) -> None:
    found = run(
        web_page,
        """const table = host.EventTable.fromManifest(given.events);
           const mask = new host.Paced(new host.Grammar(table, given.rules));
           for (const id of given.ids) mask.advance(id);
           const before = JSON.stringify(mask.state());
           const refusals = [];
           for (const change of [...given.changes, null])
             refusals.push(await refusal(() => mask.resume(change && { ...mask.state(), ...change })));
           return { refusals, kept: JSON.stringify(mask.state()) === before };""",
        events=EVENTS,
        rules=RULES,
        ids=[TABLE.on_ids[60], TABLE.velocity_ids[80], TABLE.shift_ids[10], TABLE.on_ids[64]],
        changes=DAMAGED_STATES,
    )
    assert found["kept"] is True
    for refused in found["refusals"]:
        assert refused[0] == "state" and refused[1].startswith("This state is not whole: its grammar is"), (
            refused
        )


BAD_EVENTS: list[dict[str, Any]] = [
    {"step_ms": 2.5},
    {"step_ms": 0},
    {"tokens": [token for token in EVENTS["tokens"] if token["kind"] != "off"]},
    {"tokens": [token for token in EVENTS["tokens"] if token["kind"] != "velocity"]},
    {"tokens": [token for token in EVENTS["tokens"] if token != {"kind": "shift", "value": 1}]},
    {"tokens": []},
]
BAD_RULES: list[dict[str, Any]] = [
    {"may_follow": None},
    {"start": None},
    {"start": ["on", "chord"]},
    {"may_follow": RULES["may_follow"] | {"off": ["on", "off"]}},
]


def like_python(text: str) -> str:
    """The two print values each in its own language, and name the way out with another sign before it."""
    text = re.sub(r" is (None|null|undefined|\[.*?\]),", " is ...,", text)
    return re.sub(r"[;:] export (again|the bundle again)\.?$", "", text).removesuffix(".").replace(";", ":")


def test_tables_and_rules_that_will_not_do(web_page: Page) -> None:
    found = run(
        web_page,
        """const table = host.EventTable.fromManifest(given.events);
           const open = bad => refusal(() => host.EventTable.fromManifest({ ...given.events, ...bad }));
           const rule = bad => refusal(() => new host.Grammar(table, { ...given.rules, ...bad }));
           return Promise.all([...given.badEvents.map(open), ...given.badRules.map(rule)]);""",
        events=EVENTS,
        rules=RULES,
        badEvents=[*BAD_EVENTS, {"tokens": None}, {"tokens": [{"kind": "chord", "value": 1}]}],
        badRules=BAD_RULES,
    )
    assert all(kind == "bundle" for kind, _, _ in found)
    for (_, said, _), bad in zip(found, BAD_EVENTS, strict=False):
        assert like_python(said) == like_python(refusal(EventTable.from_json, EVENTS | bad))
    for (_, said, _), bad in zip(found[-len(BAD_RULES) :], BAD_RULES, strict=True):
        assert like_python(said) == like_python(refusal(Grammar, TABLE, RULES | bad))
