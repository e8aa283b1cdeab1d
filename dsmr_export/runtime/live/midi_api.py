"""Which MIDI system this machine offers, ALSA's sequencer or JACK, through python-rtmidi (the extra `live`).

Every lack is one line with its fix. python-rtmidi is imported when a system is looked for, not before.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import sys
from contextlib import suppress
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from dsmr_export.errors import PortError

SEQUENCER = Path("/dev/snd/seq")
API_VARIABLE = "DSMR_MIDI_API"
CLIENT_VARIABLE = "DSMR_MIDI_CLIENT"
"""What other programs see our ports under, dsmr by default; JACK makes the second client dsmr-01. Another
name tells two instruments apart, and lets them run at two JACK servers, whose clients share one folder."""

QUEUE = 4096
"""Messages that wait to be fetched (receive.by_polling): 4 s of as many as a MIDI cable can carry."""

LIVE = "pip install 'dsmr-export[live]'"
_FILES = "files work without (--prompt, --save)"
_SOCKETS = Path("/proc/net/unix")

Kind = Literal["input", "output"]


class Api(StrEnum):
    """In the order of preference: a board has ALSA, and JACK only where somebody started it."""

    ALSA = "alsa"
    JACK = "jack"


def find_api() -> Api:
    """ALSA where its sequencer can be opened, else JACK where a server runs; $DSMR_MIDI_API names one.

    Raises PortError with what is missing. While ports are open it must not be called: see `server`.
    """
    rtmidi = load()
    wanted = os.environ.get(API_VARIABLE, "").lower()
    if wanted and wanted not in list(Api):
        raise PortError(f"{API_VARIABLE}={wanted} is no MIDI system: set alsa or jack, or leave it away")
    lacks = []
    for api in [Api(wanted)] if wanted else Api:
        try:
            _client(rtmidi, api, "input").delete()
        except PortError as error:
            lacks.append(str(error))
        else:
            return api
    named = f" ({API_VARIABLE}={wanted} allows nothing else)" if wanted else ""
    raise PortError(f"no MIDI ports: {', and '.join(lacks)}{named}; {_FILES}")


def load() -> Any:
    """The module rtmidi, with ALSA and JACK silent. Raises PortError where it cannot be imported."""
    try:
        rtmidi = import_module("rtmidi")
    except ModuleNotFoundError as error:
        raise PortError(f"MIDI ports need python-rtmidi: {how_to_install()}; {_FILES}") from error
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise PortError(
            f"python-rtmidi cannot be imported ({reason}): {how_to_mend(reason)}; {_FILES}"
        ) from error
    _silence(rtmidi)
    return rtmidi


def client(api: Api, kind: Kind) -> Any:
    """A new rtmidi.MidiIn or MidiOut that has no port yet. Raises PortError where the system is gone."""
    return _client(load(), api, kind)


def server(api: Api) -> frozenset[str]:
    """Stands for the JACK server that runs now: another one, or none, is not equal. ALSA's never changes.

    libjack does not tell: the clients of a dead server go on listing its ports. Making the next client frees
    them, and using or deleting one after that is a crash; so all of a dead server's are deleted before a new
    one is made. A server whose socket is not found (PipeWire's) is taken to live.
    """
    if api is not Api.JACK:
        return frozenset()
    name = os.environ.get("JACK_DEFAULT_SERVER", "default")
    socket = re.compile(rf" 00010000 .* (\d+) \S*/jack_{re.escape(name)}_\d+(?:_\d+)?$", re.MULTILINE)
    try:
        return frozenset(socket.findall(_SOCKETS.read_text(encoding="utf-8", errors="replace")))
    except OSError:
        return frozenset()


def how_to_install() -> str:
    """The command that installs python-rtmidi."""
    if sys.version_info >= (3, 13):  # python-rtmidi 1.5.8 has no wheels for it
        return f"sudo apt install build-essential python3-dev pkg-config libasound2-dev && {LIVE}"
    return LIVE


def how_to_mend(reason: str) -> str:
    """The command for a python-rtmidi that is installed and whose import fails for `reason`."""
    return f"sudo apt install {_libasound()}" if "libasound" in reason else f"{LIVE} --force-reinstall"


def _libasound() -> str:
    """The package's name: Debian 13 and Ubuntu 24.04 renamed it, with 64-bit time."""
    try:
        system = platform.freedesktop_os_release()
    except OSError:
        return "libasound2"
    renamed = {"ubuntu": (24, 4)}.get(system.get("ID", ""), (13,))
    version = tuple(int(part) for part in re.findall(r"\d+", system.get("VERSION_ID", ""))[:2])
    return "libasound2t64" if version >= renamed else "libasound2"


def _silence(rtmidi: Any) -> None:
    """ALSA and JACK write to file descriptor 2, JACK whenever it likes, from threads of its own.

    Their own handlers are replaced by a C function that does nothing: strlen. Python must not run in there.
    """
    with suppress(AttributeError, OSError):
        library = ctypes.CDLL(rtmidi._rtmidi.__file__)  # finds the functions of the libraries it is linked to
        nothing = ctypes.cast(library.strlen, ctypes.c_void_p)
        for name in ("snd_lib_error_set_handler", "jack_set_error_function", "jack_set_info_function"):
            with suppress(AttributeError):  # built without it
                getattr(library, name)(nothing)


def _client(rtmidi: Any, api: Api, kind: Kind) -> Any:
    number = {Api.ALSA: rtmidi.API_LINUX_ALSA, Api.JACK: rtmidi.API_UNIX_JACK}[api]
    if number not in rtmidi.get_compiled_api():  # rtmidi would take another one without a word
        raise PortError(f"this python-rtmidi was built without {api.name}")
    name = os.environ.get(CLIENT_VARIABLE) or "dsmr"
    try:
        return rtmidi.MidiIn(number, name, QUEUE) if kind == "input" else rtmidi.MidiOut(number, name)
    except Exception as error:  # rtmidi's own SystemError
        raise PortError(_lack(api, " ".join(str(error).split()))) from error


def _lack(api: Api, reason: str) -> str:
    if api is Api.JACK:
        name = os.environ.get("JACK_DEFAULT_SERVER")
        return f"no JACK server runs{f' as {name}' if name else ''}"
    if not SEQUENCER.exists():
        return f"{SEQUENCER} does not exist (sudo modprobe snd-seq)"
    if not os.access(SEQUENCER, os.R_OK | os.W_OK):
        return (
            f'{SEQUENCER} may not be opened by this user (sudo usermod -aG audio "$USER", then log in again)'
        )
    return f"ALSA's sequencer cannot be opened ({reason})"
