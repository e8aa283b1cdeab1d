"""Peers in a run: who was asked for, who can take part, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsmr_export import parity
from dsmr_export.bench import turns
from dsmr_export.bench.peers import AbsentError, Peer, Work, peers
from dsmr_export.bench.process import LostError, Remote
from dsmr_export.bench.turns import Contestant, Progress, Times
from dsmr_export.errors import DsmrError, nearest
from dsmr_export.runtime.bundle import Bundle


def chosen(names: Sequence[str]) -> list[Peer]:
    """Peers by name; `all` is all of them. Raises DsmrError for an unknown one."""
    known = peers()
    if "all" in names:
        return list(known.values())
    for name in names:
        if name not in known:
            raise DsmrError(
                f"there is no peer {name!r}{nearest(name, list(known))}: "
                f"they are {', '.join(known)}, or all of them with all"
            )
    return [known[name] for name in names]


def invite(
    bundle: Bundle,
    checkpoint: Path | None,
    invited: Sequence[Peer],
    threads: int,
    ids: NDArray[np.int64],
    folder: Path,
) -> tuple[Work | None, dict[str, str]]:
    """What peers do, None where nobody can, and why some are absent, as far as that is known beforehand.

    Raises CheckpointError for a `checkpoint` that is damaged or not the bundle's.
    """
    absent = {peer.name: reason for peer in invited if (reason := peer.absent())}
    source, reason = parity.find_reference(bundle, checkpoint) if invited else (None, "")
    if source is None:
        return None, {peer.name: absent.get(peer.name, reason) for peer in invited}
    horizons = bundle.manifest.schedule.horizons
    return Work(source.path, horizons, threads, ids, folder), absent


def start(
    stack: ExitStack, work: Work | None, invited: Sequence[Peer], absent: dict[str, str], progress: Progress
) -> dict[str, Remote]:
    """Each peer in a process of its own, ready to step; `absent` learns of those that could not start."""
    running: dict[str, Remote] = {}
    for number, peer in enumerate(invited):
        if work is None or peer.name in absent:
            continue
        progress("starting peers", number, len(invited))
        remote = Remote(Contestant, peer.open, work)
        stack.callback(remote.close)
        try:
            running[peer.name] = remote.wait()
        except (AbsentError, LostError) as error:
            absent[peer.name] = str(error)
    progress("starting peers", len(invited), max(1, len(invited)))
    return running


def results(
    invited: Sequence[Peer],
    absent: Mapping[str, str],
    times: Mapping[str, Times],
    peaks: Mapping[str, float],
    reference: Times,
) -> dict[str, Any]:
    """{peer: {what, equal, step_ms, tokens_per_s, ratio, ratio_min, ratio_max, peak_mb} or {absent: why}}."""
    found: dict[str, Any] = {}
    for peer in invited:
        if peer.name in absent:
            found[peer.name] = {"absent": absent[peer.name]}
            continue
        step_ms = times[peer.name].step_ms
        found[peer.name] = {
            "what": peer.what,
            "equal": peer.equal,
            **turns.figures(step_ms),
            **turns.ratio(step_ms, reference.step_ms),
            "peak_mb": peaks[peer.name],
        }
    return found


def packages(invited: Sequence[Peer]) -> list[str]:
    """Packages whose versions the figures depend on, as they are called on PyPI."""
    return sorted({package for peer in invited for package in peer.packages})
