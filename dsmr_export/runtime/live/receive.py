"""How messages come out of an rtmidi.MidiIn: called from its thread with ALSA, fetched by ours with JACK."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from typing import Any

from dsmr_export.runtime.live.midi_api import Api

POLL_S = 0.001
_SETTLE_S = 0.02


def receive(client: Any, api: Api, take: Callable[[bytes], None]) -> Callable[[], None]:
    """Calls `take` with each complete message of a client whose port is opened next; returns what ends that.

    MIDI clock is among them, SysEx and active sensing are not. `take` must not raise. After the end it is not
    called again, unless it has been under way for a second.
    """
    client.ignore_types(sysex=True, timing=False, active_sense=True)
    return (by_polling if api is Api.JACK else by_callback)(client, take)


def by_callback(client: Any, take: Callable[[bytes], None]) -> Callable[[], None]:
    """rtmidi's thread waits for messages and calls: nothing is done between them."""
    taking = threading.Lock()

    def called(event: tuple[list[int], float], _: object) -> None:
        with taking:
            take(bytes(event[0]))

    def end() -> None:
        # Closing a port joins rtmidi's thread with the GIL held, for which a callback that has begun still
        # waits: none may be under way then, and what such a one was given must outlive its waiting.
        given = gc.get_referents(client)
        client.cancel_callback()
        time.sleep(_SETTLE_S)
        if taking.acquire(timeout=1):
            taking.release()
        del given

    client.set_callback(called)
    return end


def by_polling(client: Any, take: Callable[[bytes], None]) -> Callable[[], None]:
    """A thread of ours looks every millisecond.

    JACK's own thread must be done within a period of audio, 3 ms and more. If it waited for Python there,
    which holds the GIL for 5 ms, rtmidi would read on in the messages of the next period: some come twice,
    others never (in 5 of 16 bursts of 352 and 600 messages, periods of 64 to 1024 frames).
    """
    looking = threading.Lock()
    ended = threading.Event()

    def look() -> bytes | None:
        with looking:
            event = None if ended.is_set() else client.get_message()
        return bytes(event[0]) if event else None

    def run() -> None:
        while not ended.is_set():
            if message := look():
                take(message)
            else:
                ended.wait(POLL_S)

    def end() -> None:
        with looking:
            ended.set()
        if thread is not threading.current_thread():
            thread.join(timeout=1)

    thread = threading.Thread(target=run, name="dsmr-midi-in", daemon=True)
    thread.start()
    return end
