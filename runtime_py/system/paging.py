"""Weights in a mapped file that memory does not hold as a whole: what is needed next is asked for in one piece.

Left alone, the system reads a page when a kernel touches it, and others around it that nobody asked for: its guess for
files that are read on, or a whole huge page, which export/files/mapping.py asks for. Rows of experts are declared to be
read anywhere (MADV_RANDOM), and an expert that a token goes to is asked for as a whole (MADV_WILLNEED), which reads
what is not there yet and nothing else.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterable
from contextlib import suppress

import numpy as np

PAGE = mmap.PAGESIZE
WILL_NEED = getattr(mmap, "MADV_WILLNEED", None)  # there is none on Windows
_RANDOM = getattr(mmap, "MADV_RANDOM", None)
_SMALL = getattr(mmap, "MADV_NOHUGEPAGE", None)  # Linux has it


def _file_of(array: np.ndarray) -> mmap.mmap | None:
    base: object = array
    while isinstance(base, np.ndarray):
        found = getattr(base, "_mmap", None)
        if found is not None:
            return found
        base = base.base
    return None


def in_a_file(array: np.ndarray) -> bool:
    """Whether it is part of a mapped file."""
    return _file_of(array) is not None


def in_small_pages(arrays: Iterable[np.ndarray]) -> int:
    """Take back that huge pages were asked for every mapped file that one of the arrays lies in; how many files."""
    files = {id(file): file for file in map(_file_of, arrays) if file is not None}
    told = 0
    for file in files.values():
        with suppress(OSError):  # a system without huge pages
            if _SMALL is not None:
                file.madvise(_SMALL)
                told += 1
    return told


def read_anywhere(array: np.ndarray) -> bool:
    """Declare that a part of a mapped file is read in no order; False where the system has no ear for it."""
    if _RANDOM is None or WILL_NEED is None or not in_a_file(array):
        return False
    first = -(-array.ctypes.data // PAGE) * PAGE
    size = (array.ctypes.data + array.nbytes) // PAGE * PAGE - first
    if size > 0:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), _RANDOM)
    return True
