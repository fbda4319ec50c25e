"""Pages of a mapped file held below a limit, as a system short of memory would hold them. Linux.

The benchmark of models larger than memory needs less memory than its machine has, and a control group is not always
ours to make. So a thread does to one file what the system's reclaim does to all: a clock goes over its pages, those
that were touched since it last passed are left for another round, the others leave the system's cache. What counts as
touched is a page's entry in the table of pages, which the clock takes away (MADV_DONTNEED) and a touch brings back
without reading anything.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import time
from pathlib import Path

import numpy as np

PAGE = mmap.PAGESIZE
_CHUNK = 16  # pages that the clock judges together: the system maps as many around a touched one
_STRIDE = 64  # chunks that it goes over at once
_PAUSE = 0.002  # seconds at least between looks at how much is there
_SHARE = 5  # of the time that a look takes, at least, is waited for the next
_PRESENT = np.uint64(1 << 63)
_LIBC = ctypes.CDLL(None, use_errno=True)


class PageLimit(threading.Thread):
    """Keeps at most so many bytes of a file that this process has mapped in the system's cache, until close()."""

    def __init__(self, path: Path, limit: int) -> None:
        """limit: bytes. Raises ValueError where the file is not mapped once and from its first byte."""
        super().__init__(daemon=True, name="page-limit")
        self._address, size = _mapping(path)
        self._pages = size // PAGE
        self._file = os.open(path, os.O_RDONLY)
        self._map = os.open("/proc/self/pagemap", os.O_RDONLY)
        self._limit, self._hand, self._ended = limit // PAGE, 0, threading.Event()
        self.most = 0  # bytes that were there at once since the last look

    def resident(self) -> np.ndarray:
        """Which pages are in the system's cache, bool [pages]."""
        found = np.zeros(self._pages, np.uint8)
        if _LIBC.mincore(ctypes.c_void_p(self._address), ctypes.c_size_t(self._pages * PAGE), found.ctypes.data_as(
            ctypes.POINTER(ctypes.c_ubyte))):  # fmt: skip
            raise OSError(ctypes.get_errno(), "mincore")
        return (found & 1).astype(bool)

    def drop(self) -> None:
        """Nothing of the file is in the cache afterwards."""
        self._zap(0, self._pages)
        os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_DONTNEED)

    def run(self) -> None:
        looked = 0.0
        while not self._ended.wait(max(_PAUSE, _SHARE * looked)):
            start = time.perf_counter()
            there = self.resident()
            count = int(there.sum())
            self.most = max(self.most, count * PAGE)
            if count > self._limit:
                self._turn(there, count - self._limit)
            looked = time.perf_counter() - start

    def close(self) -> None:
        self._ended.set()
        self.join()
        self.close_files()

    def close_files(self) -> None:
        """Of a limit that was never started."""
        os.close(self._file)
        os.close(self._map)

    def _turn(self, there: np.ndarray, excess: int) -> None:
        """Go on with the clock until so many pages have left."""
        step = _CHUNK * _STRIDE
        while excess > 0 and not self._ended.is_set():
            first = self._hand
            last = min(first + step, self._pages)
            self._hand = last if last < self._pages else 0
            if not there[first:last].any():
                continue
            entries = np.frombuffer(os.pread(self._map, 8 * (last - first), 8 * (self._address // PAGE + first)), "<u8")
            starts = np.arange(0, last - first, _CHUNK)
            touched = np.repeat(np.maximum.reduceat(entries >= _PRESENT, starts), _CHUNK)[: last - first]
            if touched.any():
                self._zap(first, last)
            leaving = there[first:last] & ~touched
            edges = np.flatnonzero(np.diff(np.concatenate([[False], leaving, [False]]).astype(np.int8)))
            for one, end in edges.reshape(-1, 2).tolist():
                os.posix_fadvise(self._file, (first + one) * PAGE, (end - one) * PAGE, os.POSIX_FADV_DONTNEED)
            there[first:last] &= touched
            excess -= int(leaving.sum())

    def _zap(self, first: int, last: int) -> None:
        """Take these pages out of the table of pages; they stay in the cache."""
        place, size = self._address + first * PAGE, (last - first) * PAGE
        if _LIBC.madvise(ctypes.c_void_p(place), ctypes.c_size_t(size), mmap.MADV_DONTNEED):
            raise OSError(ctypes.get_errno(), "madvise")


def _mapping(path: Path) -> tuple[int, int]:
    """Address and bytes of the place where this process has the file."""
    places = []
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").split("\n"):
        columns = line.split(maxsplit=5)
        if len(columns) == 6 and columns[5] == str(path.resolve()):
            first, last = (int(number, 16) for number in columns[0].split("-"))
            places.append((first, last, int(columns[2], 16)))
    places.sort()
    if not places or any(offset != first - places[0][0] for first, _, offset in places):
        raise ValueError(f"{path} is not mapped once and whole")
    return places[0][0], places[-1][1] - places[0][0]


def bytes_read() -> int:
    """What this process has had read from disks so far, also ahead of need."""
    for line in Path("/proc/self/io").read_text(encoding="ascii").split("\n"):
        if line.startswith("read_bytes:"):
            return int(line.split()[1])
    return 0


def disk_rate(path: Path, pieces: int = 64, size: int = 1 << 20) -> float:
    """Bytes a second that pieces of this size, in random order, are read at from a file that is not cached."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
        places = np.random.default_rng(1).permutation(os.fstat(file).st_size // size)[:pieces].tolist()
        start = time.perf_counter()
        for place in places:
            os.pread(file, size, place * size)
        rate = len(places) * size / (time.perf_counter() - start)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        return rate
    finally:
        os.close(file)
