"""A bank keeps states under any name, and says of each file that is none why it is none."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsmr_export.errors import OutputError, StateError
from dsmr_export.runtime import Bundle, Sampling, saved_state
from dsmr_export.runtime.bank import MAX_FILE_NAME, Bank
from dsmr_export.runtime.performer import Performer
from dsmr_export.runtime.saved_state import SavedState
from tests.tiny_bundle import make_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bank") / "tiny")


@pytest.fixture(scope="module")
def state(bundle: Bundle) -> SavedState:
    performer = Performer(bundle, Sampling(), 1)
    performer.begin()
    list(islice(performer.play(), 20))
    return SavedState(performer.snapshot(), extra={"tempo": 2})


@pytest.fixture
def bank(bundle: Bundle, tmp_path: Path) -> Bank:
    return Bank(tmp_path / "states" / "mine", bundle)


def test_save_load_delete(bank: Bank, state: SavedState) -> None:
    assert bank.names() == [] and not bank.folder.exists()
    path = bank.save("inside the slow movement", state)
    assert path.name == "inside%20the%20slow%20movement.dsmr"
    bank.save("another", state)
    assert bank.names() == ["another", "inside the slow movement"]
    found = bank.load("inside the slow movement")
    assert found.name == "inside the slow movement" and found.extra == {"tempo": 2}
    assert saved_state.to_bytes(found) == path.read_bytes()
    bank.delete("another")
    assert bank.names() == ["inside the slow movement"] and len(os.listdir(bank.folder)) == 1


def test_a_name_is_saved_over(bank: Bank, state: SavedState) -> None:
    bank.save("here", state)
    bank.save("here", SavedState(state.moment, extra={"tempo": 3}))
    assert bank.names() == ["here"] and bank.load("here").extra == {"tempo": 3}


@settings(max_examples=200)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60), st.booleans())
def test_any_name_is_a_file_in_the_folder_and_comes_back(
    bundle: Bundle, tmp_path_factory: pytest.TempPathFactory, name: str, whole: bool
) -> None:
    """Slashes, dots, percent signs and newlines too; where the name is refused, nothing is written."""
    folder = tmp_path_factory.mktemp("names")
    bank = Bank(folder, bundle)
    try:
        path = bank.path(name)
    except StateError:
        assert not name.strip() or len(name.encode()) * 3 > MAX_FILE_NAME - 5
        return
    assert path.parent == folder and len(os.fsencode(path.name)) <= MAX_FILE_NAME
    path.write_bytes(b"")
    assert [entry.name for entry in bank.entries()] == [name]


@pytest.mark.parametrize("name", ["..", ".", "a/b", "../../etc/x", "%2F", "-", "x.dsmr"])
def test_names_that_look_like_paths(bank: Bank, state: SavedState, name: str) -> None:
    bank.save(name, state)
    assert bank.names() == [name] and bank.load(name).name == name
    assert os.listdir(bank.folder.parent) == [bank.folder.name]


def test_names_that_are_none(bank: Bank, state: SavedState) -> None:
    for name in ("", " ", "\n"):
        with pytest.raises(StateError, match="a state needs a name; give one that is not empty"):
            bank.save(name, state)
    with pytest.raises(StateError, match="makes a file name of 305 bytes, more than 220; give a shorter one"):
        bank.save("a" * 300, state)
    with pytest.raises(StateError, match=r"the name '\\udcff' is not text"):
        bank.save("\udcff", state)
    assert not bank.folder.exists()
    bank.save("a" * (MAX_FILE_NAME - 5), state)  # the longest there is can be written


def test_a_name_that_is_not_there(bank: Bank, state: SavedState) -> None:
    for refused in (bank.load, bank.delete):
        with pytest.raises(StateError, match="has no state named 'here'; there are: none"):
            refused("here")
    bank.save("there", state)
    for refused in (bank.load, bank.delete):
        with pytest.raises(StateError, match=r"named 'here' \(did you mean there\?\); there are: there"):
            refused("here")


def test_what_cannot_be_loaded_is_listed_with_its_reason(
    bank: Bank, state: SavedState, tmp_path: Path
) -> None:
    other = make_bundle(tmp_path / "other", (3, 21, 1))
    performer = Performer(other)
    performer.begin()
    bank.save("good", state)
    Bank(bank.folder, other).save("foreign", SavedState(performer.snapshot()))
    (bank.folder / "by hand.dsmr").write_bytes(bank.path("good").read_bytes())
    (bank.folder / "cut.dsmr").write_bytes(bank.path("good").read_bytes()[:-1])
    (bank.folder / "folder.dsmr").mkdir()
    (bank.folder / "readme.txt").write_text("no state, and not meant to be one")
    (bank.folder / ".good.dsmr.1.tmp").write_text("under way")
    problems = {entry.name: entry.problem for entry in bank.entries()}
    assert bank.names() == ["good"] and problems.pop("good") is None
    assert {name: words in str(problems.pop(name)) for name, words in {
        "foreign": "is a state of bundle",
        "by hand": "was not named by a bank; rename it to by%20hand.dsmr",
        "cut": "cut short",
        "folder": "is not a file",
    }.items()} == dict.fromkeys(("foreign", "by hand", "cut", "folder"), True)  # fmt: skip
    assert not problems


def test_folders_that_cannot_be(bundle: Bundle, state: SavedState, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    bank = Bank(tmp_path / "file", bundle)
    with pytest.raises(StateError, match=r"file: cannot be read \(Not a directory\)"):
        bank.names()
    with pytest.raises(OutputError, match=r"file: cannot be made \(File exists\); choose another folder"):
        bank.save("x", state)


def test_a_state_that_cannot_be_removed(
    bank: Bank, state: SavedState, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank.save("here", state)

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", denied)
    with pytest.raises(StateError, match=r"cannot be removed \(Permission denied\)"):
        bank.delete("here")
