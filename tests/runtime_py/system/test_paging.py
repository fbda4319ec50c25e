"""Mapped files that memory does not hold: what is asked for comes, and nothing around it. Linux."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numba as nb
import numpy as np
import pytest

from export.files.mapping import mapped_bytes
from runtime_py.simd.pages import will_need
from runtime_py.system.paging import PAGE, in_a_file, in_small_pages, read_anywhere
from tests.benchmarks.limited_memory import PageLimit

PAGES = 4096
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux what is in its cache")


@nb.njit
def ask(address, size, page):
    will_need(address, size, page)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(PAGES * PAGE))
    with path.open("rb") as opened:
        os.fsync(opened.fileno())  # a page that is not written yet cannot leave
    return path


def resident_after(limit: PageLimit, least: int) -> np.ndarray:
    """Which pages are there once it is at least so many: reading goes on beside us."""
    for _ in range(1000):
        if limit.resident().sum() >= least:
            break
        time.sleep(0.01)
    time.sleep(0.05)
    return np.flatnonzero(limit.resident())


def test_what_is_asked_for_comes_alone(file):
    mapped = np.memmap(file, np.uint8, "r")
    limit = PageLimit(file, PAGES * PAGE)
    limit.drop()
    assert not limit.resident().any()
    experts = mapped[100 : 3000 * PAGE + 5].view(np.uint8).reshape(-1)
    assert in_a_file(experts) and read_anywhere(experts)
    start = 1000 * PAGE + 40  # from within a page to within another
    ask(mapped.ctypes.data + start, 300 * PAGE, PAGE)
    assert resident_after(limit, 301).tolist() == list(range(1000, 1301))
    assert int(mapped[2000 * PAGE]) == file.read_bytes()[2000 * PAGE]
    limit.close_files()


def test_memory_is_no_file():
    assert not in_a_file(np.zeros(9)) and not read_anywhere(np.zeros((3, 4))[1:])


def test_a_copy_of_a_mapped_file_is_none(file):
    mapped = np.memmap(file, np.uint8, "r")
    assert not in_a_file(mapped[3:99].copy()) and in_a_file(np.ascontiguousarray(mapped[8:96]).view(np.float32))


def test_nothing_changes_while_a_limit_drives_pages_out(file):
    """The clock of the benchmark: the file stays below the limit, and says what it always said."""
    mapped, whole = np.memmap(file, np.uint8, "r"), np.frombuffer(Path(file).read_bytes(), np.uint8)
    limit = PageLimit(file, PAGES * PAGE // 4)
    limit.drop()
    limit.start()
    for _ in range(4):
        for first in range(0, PAGES * PAGE, 256 * PAGE):
            assert np.array_equal(mapped[first : first + 256 * PAGE], whole[first : first + 256 * PAGE])
    for _ in range(1000):
        if limit.resident().sum() <= PAGES // 4:
            break
        time.sleep(0.01)
    limit.close()
    assert limit.resident().sum() <= PAGES // 4


def flags_of(address: int) -> set[str]:
    """What Linux keeps of the mapping that holds this address (proc_pid_smaps(5))."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and ":" not in first:
            low, high = (int(part, 16) for part in first.split("-"))
            inside = low <= address < high
        elif inside and first == "VmFlags:":
            return set(line.split()[1:])
    return set()


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="a system without huge pages")
def test_a_file_is_in_huge_pages_until_memory_does_not_hold_it(file):
    mapped = mapped_bytes(file, PAGES * PAGE)
    parts = [mapped[:64].view(np.float32), mapped[PAGE : 9 * PAGE].reshape(8, PAGE), np.zeros(8)]
    first, last = mapped.ctypes.data, mapped.ctypes.data + mapped.nbytes - 1
    assert "hg" in flags_of(first) and "hg" in flags_of(last)
    assert in_small_pages([np.zeros(8)]) == 0
    assert in_small_pages(parts) == 1
    assert "hg" not in flags_of(first) and "nh" in flags_of(first)
    assert mapped.tobytes() == file.read_bytes()
