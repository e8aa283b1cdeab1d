"""A file that holds a performer's whole memory: what it heard and played, and its random generator.

    dsmr-state 1 SHA-256    the format, its version, and the SHA-256 of the next line
    {...}                   JSON: whose state it is, the shapes of the arrays, and the SHA-256 of what follows
    ...                     the arrays' bytes, one after the other: little-endian, C order

So a changed byte anywhere is noticed, and what a file is can be told without reading all of it. A state
belongs to one graph of one bundle (``Bundle.identity``). Its size is the graph's ``state_bytes``, a row of
logits and a few kilobytes, however long the performance was.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from dsmr_export import __version__
from dsmr_export.errors import DsmrError, StateError
from dsmr_export.runtime.bundle import Bundle
from dsmr_export.runtime.files import remove_leftovers, write_atomically
from dsmr_export.runtime.performer import Moment, Paced
from dsmr_export.runtime.stream import MAX_POSITION, Snapshot

MAGIC = b"dsmr-state "
FORMAT = 1
LOGITS = "logits"
_MAX_HEADER_BYTES = 1 << 24
"""Far more than any: a line without an end is not read to the end."""

_DAMAGED = "is damaged ({}); save it again, or take another copy of it"


@dataclass(frozen=True)
class SavedState:
    """A moment with a name. ``extra`` is plain JSON: what else somebody wants to find again."""

    moment: Moment
    name: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def graph(self) -> str:
        """The graph that goes on from it."""
        return self.moment.stream.graph


def write(path: str | os.PathLike[str], state: SavedState) -> None:
    """Write a state; an older file at ``path`` stays until the new one is complete, and what a write before
    left that was killed is removed.

    Raises ``OutputError`` if it cannot be written, and ``TypeError`` or ``ValueError`` for an ``extra`` that
    JSON has no words for.
    """
    content = to_bytes(state)
    remove_leftovers(Path(path))
    write_atomically(Path(path), content)


def to_bytes(state: SavedState) -> bytes:
    """What ``write`` writes; the same state, the same bytes."""
    stream = state.moment.stream
    arrays = {**stream.state, LOGITS: stream.logits}
    payload = b"".join(_little(array).tobytes() for array in arrays.values())
    header = {
        "bundle": stream.bundle,
        "graph": stream.graph,
        "name": state.name,
        "position": stream.position,
        "consumed": stream.consumed,
        "count": stream.count,
        "mask": state.moment.mask.state(),
        "rng": state.moment.rng,
        "extra": state.extra,
        "arrays": [[name, str(array.dtype), list(array.shape)] for name, array in arrays.items()],
        "payload_sha256": hashlib.sha256(payload).hexdigest(),
        "dsmr_export": __version__,
    }
    line = json.dumps(header, allow_nan=False).encode() + b"\n"
    first = MAGIC + f"{FORMAT} {hashlib.sha256(line).hexdigest()}\n".encode()
    return first + line + payload


def read(path: str | os.PathLike[str], bundle: Bundle) -> SavedState:
    """A state of ``bundle``, for ``Performer.restore`` of one with the state's graph.

    Raises ``StateError`` for a file that is missing, damaged, cut short, no saved state, of a newer format,
    or of another bundle.
    """
    path = Path(path)
    with _opened(path) as file:
        header = _header(path, file, bundle)
        payload = file.read(_payload_bytes(path, file, header, bundle))
    if hashlib.sha256(payload).hexdigest() != header.get("payload_sha256"):
        raise StateError(f"{path}: {_DAMAGED.format('its content does not fit its checksum')}")
    arrays, start = {}, 0
    for name, (dtype, shape) in _expected(bundle, header["graph"]).items():
        array = np.frombuffer(payload, dtype.newbyteorder("<"), prod(shape), start)
        arrays[name] = array.reshape(shape).astype(dtype)  # a copy, in this machine's byte order
        start += array.nbytes
    logits = arrays.pop(LOGITS)
    try:
        numbers = [header[key] for key in ("position", "consumed", "count")]
        if not all(type(number) is int and 0 <= number < MAX_POSITION for number in numbers):
            raise ValueError("position, consumed or count is no such number")
        position, consumed, count = numbers
        stream = Snapshot(bundle.identity, header["graph"], position, consumed, count, arrays, logits)
        moment = Moment(stream, mask_at(bundle, header["mask"]), _rng_state(header["rng"]))
        return SavedState(moment, str(header["name"]), dict(header["extra"]))
    except (DsmrError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise StateError(f"{path}: {_DAMAGED.format(error)}") from error


def peek(path: str | os.PathLike[str], bundle: Bundle) -> str:
    """The name in a state's file, with all that can be told without reading its arrays checked: size and
    header. Raises as ``read``."""
    with _opened(Path(path)) as file:
        header = _header(Path(path), file, bundle)
        _payload_bytes(Path(path), file, header, bundle)
    return str(header.get("name", ""))


def mask_at(bundle: Bundle, state: Mapping[str, Any]) -> Paced:
    """The mask that was where ``Paced.state`` says. Raises ``BundleError`` for what is no such state."""
    mask = Paced(bundle.grammar(allow_eos=False))
    mask.resume(state)
    return mask


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        # A named pipe would wait for a writer for ever, and a folder has no bytes.
        if not stat.S_ISREG(path.stat().st_mode):
            raise StateError(f"{path}: is not a file; give a state that was saved")
        with path.open("rb") as file:
            yield file
    except OSError as error:
        reason = error.strerror or str(error)
        raise StateError(f"{path}: cannot be read ({reason}); check the path") from error


def _header(path: Path, file: IO[bytes], bundle: Bundle) -> dict[str, Any]:
    """The second line, whose checksum is right, of a state of this bundle."""
    first = file.readline(len(MAGIC) + 100)
    if not first:
        raise StateError(f"{path}: is empty (0 bytes); save it again, or take another copy of it")
    if not first.startswith(MAGIC):
        raise StateError(
            f"{path}: is not a saved state (it does not begin with {MAGIC.decode().strip()}); "
            "give a file that --save-state wrote"
        )
    match = re.fullmatch(rb"dsmr-state ([1-9][0-9]{0,8}) (.*)\n", first)
    if match and int(match[1]) > FORMAT:
        raise StateError(
            f"{path}: is of format {int(match[1])}, this dsmr-export reads {FORMAT}: upgrade dsmr-export"
        )
    line = file.readline(_MAX_HEADER_BYTES)
    if not match or hashlib.sha256(line).hexdigest().encode() != match[2]:
        raise StateError(f"{path}: {_DAMAGED.format('its header does not fit its checksum')}")
    try:
        header = json.loads(line)
        identity, graph = header["bundle"], header["graph"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StateError(f"{path}: {_DAMAGED.format('its header is no JSON of a state')}") from error
    if identity != bundle.identity:
        raise StateError(
            f"{path}: is a state of bundle {str(identity)[:12]}, this is {bundle.identity[:12]} "
            f"({bundle.path}): open the bundle that it was saved with"
        )
    if not isinstance(graph, str) or graph not in bundle.manifest.graphs:
        raise StateError(f"{path}: {_DAMAGED.format(f'its graph {graph!r} is not in the bundle')}")
    return dict(header)


def _payload_bytes(path: Path, file: IO[bytes], header: Mapping[str, Any], bundle: Bundle) -> int:
    """Size of the arrays, which begin where `file` stands. Raises StateError where the header lists others,
    or the file has another size."""
    expected = _expected(bundle, header["graph"])
    if header.get("arrays") != [[name, str(dtype), list(shape)] for name, (dtype, shape) in expected.items()]:
        raise StateError(f"{path}: {_DAMAGED.format('its arrays are not those of its graph')}")
    size = sum(dtype.itemsize * prod(shape) for dtype, shape in expected.values())
    found = os.fstat(file.fileno()).st_size - file.tell()
    if found != size:
        what = "cut short" if found < size else "longer than it should be"
        raise StateError(f"{path}: {_DAMAGED.format(f'{what}: {found:,} bytes of arrays, not {size:,}')}")
    return size


def _expected(bundle: Bundle, graph: str) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """Name -> (dtype, shape) of a graph's state, and of its logits, in the order of the file."""
    tensors = {t.input: (np.dtype(t.dtype), t.shape) for t in bundle.graph(graph).state}
    return {**tensors, LOGITS: (np.dtype(np.float32), (bundle.manifest.model.vocab_size,))}


def _little(array: NDArray[np.generic]) -> NDArray[np.generic]:
    return array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)


def _rng_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a generator, tried on one: numpy says ValueError or TypeError of what is none."""
    generator = np.random.default_rng(0).bit_generator
    generator.state = state
    return dict(generator.state)
