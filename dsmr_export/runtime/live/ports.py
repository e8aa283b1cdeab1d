"""MIDI ports: what there is, found by name, opened, and opened again after they were gone.

A port opens one of a device or of another program by `name`, or as `virtual` one that others connect to.
rtmidi says nothing when a device is unplugged; a `Watcher` looks at the list.
"""

from __future__ import annotations

import logging
import math
import re
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from dsmr_export.errors import PortError, nearest
from dsmr_export.runtime.live import midi_api
from dsmr_export.runtime.live.midi_api import Api, Kind, find_api
from dsmr_export.runtime.live.receive import receive

__all__ = ["Api", "InputPort", "OutputPort", "Ports", "Watcher", "find_api", "find_port", "list_ports"]

log = logging.getLogger("dsmr")

OWN_NAMES: dict[Kind, str] = {"input": "dsmr in", "output": "dsmr out"}
"""Our end of a connection, and what a virtual port is called where nobody gives it a name."""

EVERY_S = 0.5
"""Between two looks at the list: shorter than anybody unplugs a cable and plugs it in again."""

_UNPROVEN_BYTES = 8000
"""What may be sent without a look at the JACK server: rtmidi waits for ever in a full buffer (16 KiB)."""

_PASSES_S = 0.1
"""What was sent to JACK has been heard after this long. It passes once in a period (21 ms are usual), and a
port that goes in that same one takes it along where a hearer is late, as one on a busy machine is."""

_SERVER = "the JACK server"


@dataclass(frozen=True)
class Ports:
    """inputs: what one can listen to. outputs: what one can play on. ALSA's end with numbers, as in 20:0."""

    api: Api
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def list_ports(api: Api | None = None) -> Ports:
    """All ports of this machine, those of other running programs too. Raises PortError as `find_api` does."""
    api = api or find_api()
    found: dict[Kind, tuple[str, ...]] = {}
    for kind in OWN_NAMES:
        client = midi_api.client(api, kind)
        try:
            found[kind] = tuple(name for name in _names(client) if name)
        finally:
            client.delete()
    return Ports(api, found["input"], found["output"])


def find_port(wanted: str, names: Sequence[str], kind: Kind) -> str:
    """Which of `names` is meant: the same, the same but for ALSA's numbers, or the only one with that part.

    Raises PortError with the choice there is.
    """
    tests: tuple[Callable[[str], bool], ...] = (
        lambda name: name == wanted,
        lambda name: _lasting(name) == wanted,
        lambda name: wanted.lower() in name.lower(),
    )
    for test in tests:
        found = [name for name in names if test(name)]
        if len(found) == 1:
            return found[0]
        if found:
            raise PortError(f"more than one MIDI {kind} is called {wanted}: give one of {_listed(found)}")
    if not names:
        raise PortError(
            f"no MIDI {kind} is called {wanted}, there is none at all: plug one in, or use --virtual"
        )
    words = [word for name in names for word in (_lasting(name), *_lasting(name).split(":", 1))]
    raise PortError(f"no MIDI {kind} is called {wanted}{nearest(wanted, words)}: there is {_listed(names)}")


def _names(client: Any) -> list[str]:
    """In rtmidi's order; what vanished while the list was made has no name."""
    return [name or "" for name in client.get_ports()]


def _lasting(name: str) -> str:
    """Without ALSA's client and port number, which change when a device is plugged in again."""
    return re.sub(r" \d+:\d+$", "", name)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


class _Port:
    """What both directions share. Everything that touches the client holds the lock.

    name: of the other side, or our own if virtual. connected: false while the other side is gone.
    """

    kind: ClassVar[Kind]

    def __init__(self, name: str | None, virtual: str | None, api: Api | None) -> None:
        if (name is None) == (virtual is None):
            raise ValueError("a port is opened by name or is virtual, one of the two")
        self.api = api or find_api()
        self.virtual = virtual is not None
        self.connected = False
        self._lock = threading.RLock()
        self._closed = False
        self._client: Any = midi_api.client(self.api, self.kind)
        self._server = midi_api.server(self.api)
        # There when ours went away: never ours, whatever their name.
        self._others: frozenset[str] = frozenset()
        try:
            self.name = virtual or find_port(name or "", _names(self._client), self.kind)
            self._connect(self.name)
        except BaseException:
            self.close()
            raise

    def _connect(self, name: str) -> None:
        try:
            if self.virtual:
                self._client.open_virtual_port(name)
            else:
                self._client.open_port(_names(self._client).index(name), OWN_NAMES[self.kind])
        except Exception as error:  # rtmidi's own; ValueError: unplugged between two lines
            reason = " ".join(str(error).split())
            raise PortError(
                f"the MIDI {self.kind} {name} cannot be opened ({reason}): is it in use?"
            ) from error
        self.name, self.connected = name, True

    def _disconnect(self) -> None:
        self.connected = False
        self._client.close_port()

    def poll(self) -> Literal["lost", "back"] | None:
        """Disconnects or connects again by what is plugged in now; says which, if any. Never raises."""
        with self._lock:
            if self.virtual or self._client is None:
                return None
            try:
                names = frozenset(_names(self._client))
            except OSError:
                return None
            if self.connected:
                if self.name in names:
                    return None
                self._others = names
                self._disconnect()
                return "lost"
            self._others &= names
            new = sorted(name for name in names - self._others if _lasting(name) == _lasting(self.name))
            if not new:
                return None
            with suppress(PortError):  # next time, maybe
                self._connect(self.name if self.name in new else new[0])
                return "back"
            return None

    @property
    def orphaned(self) -> bool:
        """Whether the JACK server that this port was opened at is gone: it must be forgotten."""
        return self._server != midi_api.server(self.api)

    def forget(self) -> None:
        """Deletes the client, and with it the port."""
        with self._lock:
            client, self._client = self._client, None
            if client is not None:
                self.connected = False
                client.close_port()
                client.delete()

    def renew(self) -> None:
        """A new client after `forget`; a named port waits for `poll`. Raises PortError."""
        with self._lock:
            if self._closed:
                return
            self._client = midi_api.client(self.api, self.kind)
            self._server = midi_api.server(self.api)
            self._others = frozenset()
            if self.virtual:
                self._connect(self.name)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self.forget()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class InputPort(_Port):
    """Calls `on_message(message, at_s)` with each complete message and time.monotonic() when it came.

    MIDI clock is delivered, SysEx and active sensing are not (`receive`). on_message runs in a thread of its
    own and must be short; what it raises is logged. It must not close the port.
    """

    kind = "input"

    def __init__(
        self,
        name: str | None,
        virtual: str | None,
        on_message: Callable[[bytes, float], None],
        api: Api | None = None,
    ) -> None:
        self._on_message = on_message
        self._end_receiving: Callable[[], None] | None = None
        super().__init__(name, virtual, api)

    def _connect(self, name: str) -> None:
        self._end_receiving = receive(self._client, self.api, self._take)
        try:
            super()._connect(name)
        except PortError:
            self._receive_no_more()
            raise

    def _take(self, message: bytes) -> None:
        at_s = time.monotonic()
        try:
            self._on_message(message, at_s)
        except Exception:
            log.exception("a message from the MIDI input %s was not taken", self.name)

    def _disconnect(self) -> None:
        self._receive_no_more()
        super()._disconnect()

    def forget(self) -> None:
        with self._lock:
            self._receive_no_more()
            super().forget()

    def _receive_no_more(self) -> None:
        if self._end_receiving is not None:
            self._end_receiving()
            self._end_receiving = None


class OutputPort(_Port):
    """Sends messages, from any thread."""

    kind = "output"

    def __init__(self, name: str | None, virtual: str | None, api: Api | None = None) -> None:
        self._unproven_bytes = 0
        self._sent_at_s = -math.inf
        super().__init__(name, virtual, api)

    def send(self, message: bytes) -> bool:
        """Whether the message (one, complete) went out; False while the other side is gone."""
        with self._lock:
            if not self.connected:
                return False
            self._unproven_bytes += len(message) + 4  # rtmidi writes the length before it
            if self._unproven_bytes > _UNPROVEN_BYTES:
                self._unproven_bytes = 0
                if self.orphaned:
                    self.connected = False
                    return False
            self._sent_at_s = time.monotonic()
            try:
                self._client.send_message(message)
            except OSError:  # every error of rtmidi's is one; ValueError: what is sent is no message
                return False
            return True

    def close(self) -> None:
        """Closes when what was sent has been heard: a note-off that is lost here would sound for ever."""
        with self._lock:
            wait_s = self._sent_at_s + _PASSES_S - time.monotonic()
            if self.api is Api.JACK and self.connected and not self.orphaned and wait_s > 0:
                time.sleep(wait_s)
            super().close()


class Watcher:
    """Notices that named ports, or the JACK server, are gone, and opens them again when they are back.

    on_lost, on_back: called with the port's name, or "the JACK server", once each; in the watcher's thread.
    One watcher must know all open ports of a process (see `midi_api.server`). The ports stay their owner's to
    close, after the watcher.
    """

    def __init__(
        self,
        ports: Sequence[InputPort | OutputPort],
        on_lost: Callable[[str], None],
        on_back: Callable[[str], None],
        every_s: float = EVERY_S,
    ) -> None:
        self._ports = tuple(ports)
        self._on_lost, self._on_back = on_lost, on_back
        self._every_s = every_s
        self._server_gone = False
        self._polling = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> Self:
        """Polls in a thread from now on."""
        self._thread = threading.Thread(target=self._run, name="dsmr-midi-ports", daemon=True)
        self._thread.start()
        return self

    def poll(self) -> None:
        """Looks once."""
        with self._polling:
            if not self._server_gone and any(port.orphaned for port in self._ports):
                self._server_gone = True
                for port in self._ports:
                    port.forget()
                self._on_lost(_SERVER)
            if self._server_gone and not self._server_is_back():
                return
            for port in self._ports:
                match port.poll():
                    case "lost":
                        self._on_lost(port.name)
                    case "back":
                        self._on_back(port.name)

    def _server_is_back(self) -> bool:
        try:
            for port in self._ports:
                port.renew()
        except PortError:
            for port in self._ports:
                port.forget()
            return False
        self._server_gone = False
        # Looked for before anybody is told: what is connected again by then is to be made ready too.
        missing = [port.name for port in self._ports if not port.virtual and port.poll() is None]
        self._on_back(_SERVER)
        for name in missing:
            self._on_lost(name)
        return True

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            try:
                self.poll()
            except Exception:
                log.exception("the MIDI ports could not be looked at")

    def close(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
