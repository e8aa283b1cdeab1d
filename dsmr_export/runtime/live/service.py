"""What systemd is told: started, alive, stopping, and a line for `systemctl status`.

One datagram to $NOTIFY_SOCKET each. Where it is not set, nobody asked, and nothing happens.
Source: man 3 sd_notify, man 3 sd_watchdog_enabled.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

SEND_TIMEOUT_S = 1.0


def ready(environment: Mapping[str, str] = os.environ) -> bool:
    """Started: for Type=notify, what is ordered after the service may start."""
    return _notify("READY=1", environment)


def alive(environment: Mapping[str, str] = os.environ) -> bool:
    """Said at least every WatchdogSec; otherwise systemd restarts the service."""
    return _notify("WATCHDOG=1", environment)


def stopping(environment: Mapping[str, str] = os.environ) -> bool:
    return _notify("STOPPING=1", environment)


def say(text: str, environment: Mapping[str, str] = os.environ) -> bool:
    """The "Status:" line of `systemctl status`."""
    return _notify(f"STATUS={' '.join(text.split())}", environment)


def alive_every_s(environment: Mapping[str, str] = os.environ) -> float | None:
    """Seconds between two `alive`: half of what systemd waits; None where it waits for no word of ours."""
    usec = environment.get("WATCHDOG_USEC", "")
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(usec) / 2e6 if usec.isascii() and usec.isdigit() and int(usec) else None


def _notify(assignment: str, environment: Mapping[str, str]) -> bool:
    """Whether it was sent. Not being heard is no reason to stop the music: systemd has its own time-outs."""
    address = environment.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@") or len(address) < 2:
        return False
    if address[0] == "@":  # the abstract namespace, whose names begin with a zero byte
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.settimeout(SEND_TIMEOUT_S)
            sender.sendto(assignment.encode(), address)
    except OSError:
        return False
    return True
