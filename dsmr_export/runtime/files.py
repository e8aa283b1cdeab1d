"""Files that are whole or not there."""

from __future__ import annotations

import os
import re
import threading
from contextlib import suppress
from pathlib import Path

from dsmr_export.errors import OutputError


def write_atomically(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` in one step. Raises ``OutputError``; then ``path`` is as it was."""
    # The thread too: two of one process may save the same path at once, and the last one wins, whole.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_native_id()}.tmp")
    try:
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())  # else a power cut could leave the new name with nothing in it
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"{path}: cannot be written ({reason}); choose another place or make room"
        ) from error
    _sync_folder(path.parent)


def remove_leftovers(path: Path) -> list[Path]:
    """Remove what a ``write_atomically`` of ``path`` left that a kill or a power cut ended; says which files.

    Only files of processes and threads that are no more: another program may be writing the same path now.
    """
    pattern = re.compile(rf"\.{re.escape(path.name)}\.(\d{{1,10}})(?:-(\d{{1,10}}))?\.tmp", re.DOTALL)
    removed = []
    with suppress(OSError):  # a folder that cannot be read or written: what is left there does no harm
        for found in sorted(path.parent.iterdir()):
            match = pattern.fullmatch(found.name)
            if match and not _writes(int(match[1]), None if match[2] is None else int(match[2])):
                found.unlink(missing_ok=True)
                removed.append(found)
    return removed


def _writes(process: int, thread: int | None) -> bool:
    """Whether that thread of that process lives (None: a file of a version that named no thread).

    A board that boots gives out the same numbers again, so of this process's own number the thread decides.
    """
    if process == os.getpid():
        return thread is not None and os.path.exists(f"/proc/self/task/{thread}")
    try:
        os.kill(process, 0)  # no signal: only whether there is somebody to get one
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _sync_folder(folder: Path) -> None:
    """Makes the new name survive a power cut, where the file system can; the file is whole either way."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
