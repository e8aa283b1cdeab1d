"""A saved state goes on to the same tokens; one that is not whole, or somebody else's, is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsmr_export.errors import BundleError, OutputError, StateError
from dsmr_export.runtime import Bundle, Sampling, saved_state
from dsmr_export.runtime.performer import Performer
from dsmr_export.runtime.saved_state import FORMAT, SavedState, mask_at, peek, read, write
from tests.tiny_bundle import make_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("state") / "tiny")


@pytest.fixture(scope="module")
def whole(bundle: Bundle) -> bytes:
    """The bytes of a state in the middle of a performance."""
    return saved_state.to_bytes(SavedState(performer(bundle).snapshot(), "middle", {"tempo": 1.5}))


def performer(bundle: Bundle, count: int = 77, graph: str | None = None) -> Performer:
    """One that has played."""
    made = Performer(bundle, Sampling(), 7, graph)
    made.begin()
    list(islice(made.play(), count))
    return made


@pytest.fixture
def path(tmp_path: Path, whole: bytes) -> Path:
    (tmp_path / "a.dsmr").write_bytes(whole)
    return tmp_path / "a.dsmr"


def same(one: SavedState, other: SavedState) -> bool:
    """Everything equal, arrays byte by byte."""
    return saved_state.to_bytes(one) == saved_state.to_bytes(other)


# --- it goes on ---------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(count=st.integers(0, 150), graph=st.sampled_from(["fp32", "portable"]))
def test_it_goes_on_to_the_same_tokens(
    bundle: Bundle, tmp_path_factory: pytest.TempPathFactory, count: int, graph: str
) -> None:
    """After any number of tokens, those in the middle of a note (on, not yet its velocity) among them; the
    random generator goes on too."""
    path = tmp_path_factory.mktemp("state") / "a.dsmr"
    one = performer(bundle, count, graph)
    write(path, SavedState(one.snapshot()))
    other = Performer(bundle, Sampling(), 99, graph)
    other.restore(read(path, bundle).moment)
    assert list(islice(other.play(), 60)) == list(islice(one.play(), 60))
    assert other.stream.position == one.stream.position == count + 1 + 60


def test_all_of_it_comes_back(bundle: Bundle, path: Path) -> None:
    moment = performer(bundle).snapshot()
    found = read(path, bundle)
    assert (found.name, found.extra, found.graph) == ("middle", {"tempo": 1.5}, "fp32")
    assert found.moment.rng == moment.rng and found.moment.mask.state() == moment.mask.state()
    ours, theirs = moment.stream, found.moment.stream
    assert (theirs.bundle, theirs.position, theirs.consumed, theirs.count) == (
        bundle.identity, ours.position, ours.consumed, ours.count,
    )  # fmt: skip
    assert list(theirs.state) == list(ours.state) and np.array_equal(theirs.logits, ours.logits)
    for name, array in ours.state.items():
        assert np.array_equal(theirs.state[name], array) and theirs.state[name].dtype == array.dtype
        assert theirs.state[name].flags.writeable
    assert peek(path, bundle) == "middle"


def test_the_same_state_is_the_same_bytes(bundle: Bundle, path: Path, whole: bytes) -> None:
    assert saved_state.to_bytes(read(path, bundle)) == whole


def test_it_takes_what_the_state_takes_and_a_little_more(bundle: Bundle, whole: bytes) -> None:
    arrays = bundle.graph("fp32").state_bytes + 4 * bundle.manifest.model.vocab_size
    assert arrays < len(whole) < arrays + 4096


def test_int8_state(bundle: Bundle, tmp_path: Path) -> None:
    """Arrays of one byte a value; no graph is run, so the tiny bundle need not have one."""
    import copy

    entry = bundle.manifest.graphs["fp32"]
    narrow = dataclasses.replace(
        entry, state=tuple(dataclasses.replace(t, dtype="int8", scale=(1.0,)) for t in entry.state)
    )
    other = copy.copy(bundle)
    other.manifest = dataclasses.replace(bundle.manifest, graphs={**bundle.manifest.graphs, "fp32": narrow})
    moment = performer(bundle).snapshot()
    rng = np.random.default_rng(1)
    arrays = {
        name: rng.integers(-128, 128, array.shape).astype(np.int8)
        for name, array in moment.stream.state.items()
    }
    moment = dataclasses.replace(moment, stream=dataclasses.replace(moment.stream, state=arrays))
    write(tmp_path / "a.dsmr", SavedState(moment))
    found = read(tmp_path / "a.dsmr", other).moment.stream.state
    assert all(
        np.array_equal(found[name], array) and found[name].dtype == np.int8 for name, array in arrays.items()
    )


def test_names_of_any_kind(bundle: Bundle, tmp_path: Path) -> None:
    moment = performer(bundle, 3).snapshot()
    for name in ("", "♫ in the slow\nmovement", "\udcff", '"}'):
        write(tmp_path / "a.dsmr", SavedState(moment, name))
        assert read(tmp_path / "a.dsmr", bundle).name == name


def test_a_mask_from_its_state(bundle: Bundle) -> None:
    mask = performer(bundle).snapshot().mask
    again = mask_at(bundle, json.loads(json.dumps(mask.state())))
    assert again.state() == mask.state() and np.array_equal(again.allowed, mask.allowed)
    with pytest.raises(BundleError, match="this state is not whole"):
        mask_at(bundle, {})


# --- it is refused ------------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(data=st.data())
def test_any_cut_is_refused(
    bundle: Bundle, whole: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.dsmr"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(StateError, match=r"cut\.dsmr: "):
        read(path, bundle)


@settings(max_examples=600)
@given(place=st.one_of(st.integers(0, 3000), st.integers(0, 10**9)), flip=st.integers(1, 255))
def test_any_changed_byte_is_refused(
    bundle: Bundle, whole: bytes, tmp_path_factory: pytest.TempPathFactory, place: int, flip: int
) -> None:
    """Half of the places lie in the two lines before the arrays, which are short."""
    path = tmp_path_factory.getbasetemp() / "flipped.dsmr"
    changed = bytearray(whole)
    changed[place % len(whole)] ^= flip
    path.write_bytes(changed)
    with pytest.raises(StateError, match=r"flipped\.dsmr: "):
        read(path, bundle)


@settings(max_examples=100)
@given(st.binary(max_size=200), st.binary(max_size=200))
def test_any_bytes_are_refused(
    bundle: Bundle, tmp_path_factory: pytest.TempPathFactory, line: bytes, rest: bytes
) -> None:
    """Plain ones, and ones whose checksum is right: then what is no state is still none."""
    path = tmp_path_factory.getbasetemp() / "bytes.dsmr"
    for content in (
        line + rest,
        b"dsmr-state 1 " + line + b"\n" + rest,
        sealed(line.replace(b"\n", b"") + b"\n", rest),
    ):
        path.write_bytes(content)
        with pytest.raises(StateError, match=r"bytes\.dsmr: "):
            read(path, bundle)


def sealed(line: bytes, payload: bytes) -> bytes:
    """A file whose header has the checksum it should have."""
    return f"dsmr-state {FORMAT} {hashlib.sha256(line).hexdigest()}\n".encode() + line + payload


def with_header(whole: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """The state with another header, its checksum right: what a program with a mistake could write."""
    _, line, payload = whole.split(b"\n", 2)
    header = json.loads(line)
    change(header)
    return sealed(json.dumps(header).encode() + b"\n", payload)


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h.pop("bundle"),
        lambda h: h.update(graph="int3"),
        lambda h: h.update(graph=["fp32"]),
        lambda h: h.update(graph="portable"),
        lambda h: h.pop("arrays"),
        lambda h: h["arrays"].reverse(),
        lambda h: h["arrays"][0].__setitem__(1, "int8"),
        lambda h: h.pop("payload_sha256"),
        lambda h: h.update(payload_sha256=None),
        lambda h: h.update(position=-1),
        lambda h: h.update(position=2**53),
        lambda h: h.update(count=1.5),
        lambda h: h.update(consumed=True),
        lambda h: h.pop("count"),
        lambda h: h.update(mask=None),
        lambda h: h["mask"].update(last=[]),
        lambda h: h["mask"].update(here="many"),
        lambda h: h["mask"].pop("allowed"),
        lambda h: h.update(rng={}),
        lambda h: h["rng"]["state"].update(state=-1),
        lambda h: h["rng"]["state"].pop("inc"),
        lambda h: h.update(extra=3),
        lambda h: h.pop("name"),
    ],
)
def test_a_header_that_says_nonsense(
    bundle: Bundle, path: Path, whole: bytes, change: Callable[[dict[str, Any]], object]
) -> None:
    path.write_bytes(with_header(whole, change))
    with pytest.raises(StateError, match=r"a\.dsmr: is damaged \(.*\); save it again, or take another copy"):
        read(path, bundle)


def test_a_state_of_another_bundle(bundle: Bundle, path: Path, tmp_path: Path) -> None:
    other = make_bundle(tmp_path / "other", (3, 21, 1))
    for refused in (read, peek):
        with pytest.raises(StateError) as error:
            refused(path, other)
        assert f"is a state of bundle {bundle.identity[:12]}, this is {other.identity[:12]}" in str(
            error.value
        )
        assert "open the bundle that it was saved with" in str(error.value)


def test_a_state_of_another_graph(bundle: Bundle, path: Path) -> None:
    other = Performer(bundle, graph="portable")
    with pytest.raises(BundleError, match="belongs to graph fp32"):
        other.restore(read(path, bundle).moment)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"MThd\x00\x00", r"is not a saved state \(it does not begin with dsmr-state\)"),
        (
            b"dsmr-state 2 new words\nand more",
            "is of format 2, this dsmr-export reads 1: upgrade dsmr-export",
        ),
        (b"dsmr-state 1 " + b"0" * 64 + b"\n{}\n", "is damaged"),
        (b"dsmr-state one", "is damaged"),
    ],
    ids=["empty", "other", "newer", "checksum", "no version"],
)
def test_what_is_no_state(bundle: Bundle, path: Path, content: bytes, words: str) -> None:
    path.write_bytes(content)
    for refused in (read, peek):
        with pytest.raises(StateError, match=rf"a\.dsmr: {words}"):
            refused(path, bundle)


def test_cut_short_says_how_much_there_is(bundle: Bundle, path: Path, whole: bytes) -> None:
    path.write_bytes(whole[:-1])
    for refused in (read, peek):
        with pytest.raises(StateError, match=r"cut short: [\d,]+ bytes of arrays, not [\d,]+"):
            refused(path, bundle)
    path.write_bytes(whole + b"\0")
    with pytest.raises(StateError, match="longer than it should be"):
        read(path, bundle)


def test_no_file_a_folder_a_pipe(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"nowhere: cannot be read \(No such file or directory\); check"):
        read(tmp_path / "nowhere", bundle)
    with pytest.raises(StateError, match="is not a file"):
        read(tmp_path, bundle)
    os.mkfifo(tmp_path / "pipe")  # opened, it would wait for ever
    with pytest.raises(StateError, match="pipe: is not a file"):
        read(tmp_path / "pipe", bundle)


def test_no_permission(bundle: Bundle, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said by the system, not by a mode: root reads whatever the mode says."""

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(StateError, match=r"a\.dsmr: cannot be read \(Permission denied\)"):
        read(path, bundle)


def test_a_state_that_cannot_be_written(bundle: Bundle, tmp_path: Path) -> None:
    state = SavedState(performer(bundle, 3).snapshot())
    with pytest.raises(OutputError, match="cannot be written"):
        write(tmp_path / "nowhere" / "a.dsmr", state)
    with pytest.raises(TypeError):  # a mistake of the caller, said before anything is written
        write(tmp_path / "a.dsmr", dataclasses.replace(state, extra={"x": object()}))
    assert os.listdir(tmp_path) == []


def test_a_write_removes_what_a_killed_one_left(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / f".a.dsmr.{os.getpid()}-999999999.tmp").write_bytes(b"half")
    write(tmp_path / "a.dsmr", SavedState(performer(bundle, 3).snapshot()))
    assert os.listdir(tmp_path) == ["a.dsmr"]


def test_another_seed_leaves_the_rest(bundle: Bundle) -> None:
    one, other = performer(bundle), Performer(bundle, Sampling(), 5)
    moment = one.snapshot().with_seed(5)
    assert moment.rng == other.snapshot().rng
    assert same(SavedState(moment), SavedState(dataclasses.replace(one.snapshot(), rng=other.snapshot().rng)))
