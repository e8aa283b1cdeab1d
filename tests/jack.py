"""MIDI ports for tests where ALSA has no sequencer: those of a JACK server without a sound card.

    @pytest.fixture(scope="module")
    def midi() -> Iterator[JackServer | None]:
        with jack_server() as server:
            yield server

Every port of a test is closed before the server stops (`midi_api.server` says why). Clients of one name
disturb each other, at two servers too: ours is in $DSMR_MIDI_CLIENT; a test's own need the process id in it.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from dsmr_export.errors import PortError
from dsmr_export.runtime.live import midi_api
from dsmr_export.runtime.live.midi_api import Api

START_S = 20
"""It takes 0.3 s on two idle cores."""

_numbers = itertools.count()


class JackServer:
    """jackd with the dummy driver under a name of its own; it can be stopped and started again."""

    def __init__(self, period_frames: int) -> None:
        self.name = f"dsmr-{os.getpid()}-{next(_numbers)}"
        self.period_frames = period_frames
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when clients can connect."""
        give_up_at = time.monotonic() + START_S
        while True:
            if self._process is None or self._process.poll() is not None:
                self._process = self._launch()  # again where it met another one that begins or ends
            time.sleep(0.05)
            try:
                midi_api.client(Api.JACK, "input").delete()
                return
            except PortError:
                if time.monotonic() > give_up_at:
                    self.stop()
                    raise

    def _launch(self) -> subprocess.Popen[bytes]:
        # It ends with us, even in a crash: a machine has room for eight servers.
        bound = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        return subprocess.Popen(
            [*bound, "jackd", "--no-realtime", "-n", self.name, "-r"]
            + ["-d", "dummy", "-r", "48000", "-p", str(self.period_frames)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def stop(self, kill: bool = False) -> None:
        """As a user stops it, or as it dies in a crash."""
        if self._process is not None:
            (self._process.kill if kill else self._process.terminate)()
            self._process.wait(timeout=START_S)
            self._process = None


@contextmanager
def jack_server(period_frames: int = 128) -> Iterator[JackServer | None]:
    """Ports work inside: those of a new JACK server; of ALSA (None) where it works.

    period_frames, at 48 kHz: messages pass once in a period. A program that gets no processor for a whole one
    loses what came in it: seldom on a busy machine, less with long periods. Where neither can be had the test
    is skipped.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(midi_api.CLIENT_VARIABLE, f"dsmr{os.getpid()}")
        try:
            midi_api.client(Api.ALSA, "input").delete()
        except PortError as no_alsa:
            if shutil.which("jackd") is None:
                pytest.skip(f"no MIDI ports here: {no_alsa}, and no jackd: run tests/setup-midi.sh")
            server = JackServer(period_frames)
            patch.setenv("JACK_DEFAULT_SERVER", server.name)
            patch.setenv(midi_api.API_VARIABLE, Api.JACK)
            try:
                server.start()
            except PortError as reason:
                pytest.skip(f"no MIDI ports here: {no_alsa}, and jackd does not start ({reason})")
            try:
                yield server
            finally:
                server.stop()
        else:
            patch.setenv(midi_api.API_VARIABLE, Api.ALSA)
            yield None
