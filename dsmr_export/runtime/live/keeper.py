"""Keeps the memory of a running session in files: when told, every so often, and at the end."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from dsmr_export.errors import DsmrError, OutputError, StateError
from dsmr_export.runtime import saved_state
from dsmr_export.runtime.bank import Bank
from dsmr_export.runtime.files import remove_leftovers
from dsmr_export.runtime.live.threads import Threads
from dsmr_export.runtime.saved_state import SavedState

AUTOSAVE = "autosave"

log = logging.getLogger("dsmr")


class Keeper:
    """Saves and loads states of a session. The copy is made between two steps of inference, the file is
    written on the thread that asks, so no disk, however slow, is waited for by what sounds."""

    def __init__(
        self, threads: Threads, bank: Bank | None = None, autosave: Path | None = None, every_s: float = 0.0
    ) -> None:
        self._threads, self._bank = threads, bank
        self._autosave, self._every_s = autosave, every_s
        self._saved: object = None
        self._saved_at: float | None = None
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def autosaved_s_ago(self) -> float | None:
        return None if self._saved_at is None else time.monotonic() - self._saved_at

    def start(self) -> None:
        """Begins to save every so often, where that was asked for."""
        if self._autosave is None or not self._every_s:
            return
        remove_leftovers(self._autosave)
        self._thread = threading.Thread(target=self._run, name="dsmr-autosave", daemon=True)
        self._thread.start()

    def save(self, path: Path, name: str = "") -> Path:
        """Raises ``OutputError``."""
        saved_state.write(path, self._state(name))
        return path

    def save_as(self, name: str) -> str:
        """Into the bank. Raises ``StateError``, ``OutputError``; says what was saved."""
        self._known_bank().save(name, self._state(name))
        return f"saved as {name}"

    def names(self) -> str:
        """What the bank has, and what in it cannot be loaded. Raises ``StateError``."""
        entries = self._known_bank().entries()
        said = [
            entry.name if entry.problem is None else f"{entry.name} ({entry.problem})" for entry in entries
        ]
        return ", ".join(said) or "no states yet"

    def delete(self, name: str) -> str:
        """From the bank. Raises ``StateError``; says what is gone."""
        self._known_bank().delete(name)
        return f"{name} is deleted"

    def load(self, name: str) -> str:
        """From the bank. Raises ``StateError``, ``BundleError``; says what was loaded."""
        state = self._known_bank().load(name)
        live = self._threads.live
        self._threads.call(lambda: live.go_to(state.moment, dict(state.extra)))
        return f"going on from {name}"

    def close(self) -> None:
        """The last state is saved too, where states are saved every so often: before the threads end."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join(timeout=10)
            if not self._thread.is_alive():  # else the disk hangs
                self._save_if_changed()

    def _known_bank(self) -> Bank:
        if self._bank is None:
            raise StateError("there is no folder for states: begin with --bank FOLDER")
        return self._bank

    def _state(self, name: str) -> SavedState:
        moment, extra = self._threads.call(self._threads.live.state)
        return SavedState(moment, name, extra)

    def _run(self) -> None:
        while not self._closing.wait(self._every_s):
            self._save_if_changed()

    def _save_if_changed(self) -> None:
        assert self._autosave is not None
        try:
            state = self._state(AUTOSAVE)
            stream = state.moment.stream
            # The logits too: after an undo, other music may have come to the same position.
            now = stream.position, stream.logits.tobytes(), state.extra
            if now != self._saved:
                saved_state.write(self._autosave, state)
                self._saved = now
            self._saved_at = time.monotonic()
        except OutputError as error:  # a full disk ends no concert
            log.warning("%s", error)
        except DsmrError as error:
            if self._threads.stopping.is_set():
                self._closing.set()
            else:
                log.warning("not saved: %s", error)


def resume(path: Path, load: Callable[[Path], SavedState]) -> SavedState | None:
    """The state that an autosave left, None where there is none.

    One that cannot be read, or is of another bundle, is put aside with a warning: a service goes on without.
    """
    if not path.exists():
        return None
    try:
        return load(path)
    except StateError as error:
        aside = path.with_name(path.name + ".unread")
        try:
            path.replace(aside)
        except OSError:
            aside = path
        log.warning("%s; kept as %s, beginning anew", error, aside)
        return None
