"""Large pages: what the kernel says of this process, and nothing where it has none."""

from __future__ import annotations

import mmap
import platform
import re
from pathlib import Path

import numpy as np
import pytest

from dsmr_export.runtime import Bundle, Stream, pages
from dsmr_export.runtime.session import version_tuple

MB = 1 << 20


def on_large_pages() -> int:
    """Bytes of this process's memory that lie on large pages."""
    text = Path("/proc/self/smaps_rollup").read_text()
    return 1024 * int(re.search(r"AnonHugePages:\s+(\d+) kB", text)[1])  # type: ignore[index]


@pytest.fixture
def size() -> int:
    size = pages.page_bytes()
    if not size or "[always]" in (pages.SETTINGS / "enabled").read_text():
        pytest.skip("this kernel has no large pages, or gives them unasked: nothing to see")
    if version_tuple(platform.release()) < (6, 1):
        pytest.skip(f"Linux {platform.release()} gives large pages by and by, from 6.1 on at once")
    before = on_large_pages()
    block = mmap.mmap(-1, 8 * size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    block.madvise(mmap.MADV_HUGEPAGE)
    touch(block)
    given = on_large_pages() - before
    block.close()
    if given < 6 * size:
        pytest.skip(f"this machine has no large pages to give now: {given:,} of {8 * size:,} bytes")
    return size


def touch(block: mmap.mmap) -> None:
    """Every small page is written to, and so taken."""
    for start in range(0, len(block), mmap.PAGESIZE):
        block[start] = 1


def taken(count: int) -> mmap.mmap:
    """Memory of its own mapping, every small page touched."""
    block = mmap.mmap(-1, count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    touch(block)
    return block


def test_what_was_taken_in_between_is_on_large_pages(size: int) -> None:
    before = on_large_pages()
    with pages.large_pages():
        block = taken(8 * size)
    assert on_large_pages() - before >= 6 * size  # its ends need not lie on a border
    assert block[0] == 1 and block[size] == 1


def test_what_was_there_before_stays(size: int) -> None:
    """Also where the system puts what is new right beside it, and calls both one block."""
    old = taken(8 * size)
    before = on_large_pages()
    with pages.large_pages():
        new = taken(4 * size)
    assert size <= on_large_pages() - before <= 5 * size
    old.close(), new.close()


def test_what_is_new_is_found_at_either_end_and_in_between() -> None:
    before = [(10, 20), (30, 40)]
    assert list(pages._without([(5, 50)], before)) == [(5, 10), (20, 30), (40, 50)]
    assert list(pages._without([(12, 18), (30, 40), (60, 70)], before)) == [(60, 70)]
    assert list(pages._without([(15, 35)], before)) == [(20, 30)]
    assert list(pages._without([(5, 50)], [])) == [(5, 50)]


@pytest.mark.parametrize("how", ["switch", "never", "missing"])
def test_where_they_are_not_wanted(
    how: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "switch":
        monkeypatch.setenv(pages.SWITCH, "0")
    else:
        monkeypatch.setattr(pages, "SETTINGS", tmp_path)
    if how == "never":
        (tmp_path / "enabled").write_text("always madvise [never]\n")
        (tmp_path / "hpage_pmd_size").write_text(f"{size}\n")
    before = on_large_pages()
    with pages.large_pages():
        block = taken(4 * size)
    assert on_large_pages() - before < size
    block.close()


def test_a_file_of_any_name_may_be_mapped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    listed = b"7f00-7f80 r--p 00000000 08:01 12 /home/j\xfc/weights.bin\n7f90-7fa0 rw-p 00000000 00:00 0 \n"
    (tmp_path / "maps").write_bytes(listed)
    monkeypatch.setattr(pages, "MAPS", tmp_path / "maps")
    assert list(pages._anonymous()) == [(0x7F90, 0x7FA0)]


def test_without_proc_nothing_happens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pages, "MAPS", tmp_path / "maps")
    with pages.large_pages():
        pass


def test_what_fails_inside_is_passed_on() -> None:
    with pytest.raises(ValueError, match="inside"), pages.large_pages():
        raise ValueError("inside")


def test_logits_do_not_depend_on_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = Bundle.open().golden.input_ids[:100]
    large = Stream(Bundle.open(), "int8").feed(ids)
    monkeypatch.setenv(pages.SWITCH, "0")
    small = Stream(Bundle.open(), "int8").feed(ids)
    assert np.array_equal(large, small)
