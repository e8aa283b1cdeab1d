"""Files that are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path

from dsmr_export.errors import OutputError


def write_atomically(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` in one step. Raises ``OutputError``; then ``path`` is as it was."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
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
