"""Large pages for weights: what streams by at every token needs a five-hundredth of the address translations.

Linux gives a program large pages ("transparent huge pages", Documentation/admin-guide/mm/transhuge.rst of the
kernel) where it asks for them, and onnxruntime's allocator does not ask. So whoever opens a session asks for
the memory that opening it took; on a system that does not know them, or whose owner turned them off, nothing
happens.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

SWITCH = "DSMR_LARGE_PAGES"
"""Environment: 0 leaves memory as it is."""

SETTINGS = Path("/sys/kernel/mm/transparent_hugepage")
MAPS = Path("/proc/self/maps")
MADV_HUGEPAGE, MADV_COLLAPSE = 14, 25
"""include/uapi/asm-generic/mman-common.h of Linux; the second, from 6.1 on, does it at once instead of by and
by."""

Block = tuple[int, int]
"""Start and end of memory, in bytes."""

_ANONYMOUS = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw-p 0+ 00:00 0 *(?:\[heap\])?$")


@contextmanager
def large_pages() -> Iterator[None]:
    """Memory that this process takes in between is put on large pages, as far as it fills them.

    What was there before stays as it is. Never raises by itself.
    """
    size = page_bytes()
    before = list(_anonymous()) if size else []
    yield
    if not size:
        return
    with suppress(OSError, AttributeError):  # no /proc, no madvise: small pages do too
        advise = ctypes.CDLL(None).madvise
        for start, end in _without(_anonymous(), before):
            first = -(-start // size) * size
            whole = (end - first) // size * size
            if whole > 0:
                for advice in (MADV_HUGEPAGE, MADV_COLLAPSE):
                    advise(ctypes.c_void_p(first), ctypes.c_size_t(whole), advice)


def _without(blocks: Iterable[Block], before: Sequence[Block]) -> Iterator[Block]:
    """What blocks have more than there was before. Linux joins new blocks to old ones, at either end."""
    for start, end in blocks:
        for old_start, old_end in before:  # ascending, as the system lists them
            if old_end > start and old_start < end:
                if old_start > start:
                    yield start, old_start
                start = max(start, old_end)
        if start < end:
            yield start, end


def page_bytes() -> int:
    """Bytes of a large page; 0 where there are none, or they are turned off."""
    if os.environ.get(SWITCH) == "0":
        return 0
    try:
        if "[never]" in (SETTINGS / "enabled").read_text():
            return 0
        return int((SETTINGS / "hpage_pmd_size").read_text())
    except (OSError, ValueError):
        return 0


def _anonymous() -> Iterator[Block]:
    """Start and end of each block of this process's own memory that no file lies behind."""
    with suppress(OSError):
        # Addresses are ASCII, names of files may be anything.
        for line in MAPS.read_text(encoding="latin-1").splitlines():
            if found := _ANONYMOUS.match(line):
                yield int(found[1], 16), int(found[2], 16)
