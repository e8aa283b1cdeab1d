"""Files and folders that are whole or not there."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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


@contextmanager
def new_folder(output: Path, force: bool, option: str) -> Iterator[Path]:
    """A hidden folder beside ``output``: it takes that name when the block ends well, and vanishes else.

    force: what has the name is replaced, and stays whole until then. option: by which another place is given.
    Raises ``OutputError``.
    """
    output = output.resolve()
    new_parents = [parent for parent in output.parents if not parent.exists()]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
        try:
            yield folder
            folder.chmod(0o755)
            _rename(folder, output, force)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            for parent in new_parents:  # nearest first; one that holds the folder stays
                with suppress(OSError):
                    parent.rmdir()
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise OutputError(
            f"{output} could not be written ({reason}): nothing was left behind; give another {option}"
        ) from error


def _rename(folder: Path, output: Path, force: bool) -> None:
    """Gives the folder its name; what had it before is put aside, and comes back on any failure."""
    old = folder.with_name(folder.name + ".old")
    try:
        if force and output.exists():
            os.rename(output, old)
        os.rename(folder, output)
    finally:
        if old.exists():
            if output.exists():
                shutil.rmtree(old, ignore_errors=True)
            else:
                os.rename(old, output)
