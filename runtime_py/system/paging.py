"""Weights in a mapped file: in huge pages where memory holds it, else what is needed next is asked for in one piece.

Linux keeps a file in huge pages where its file system can (XFS, ext4 since 6.16) and the mapping asks for them before
the file is read. It is then read as fast as memory. What lies in small pages already stays there.

Where memory does not hold the file: left alone, the system reads a page when a kernel touches it, and others around it
that nobody asked for: its guess for files that are read on. Rows of experts are declared to be read anywhere
(MADV_RANDOM), and an expert that a token goes to is asked for as a whole (MADV_WILLNEED), which reads what is not there
yet and nothing else.
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
_HUGE = getattr(mmap, "MADV_HUGEPAGE", None)  # Linux has it


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


def ask_for_huge_pages(arrays: Iterable[np.ndarray]) -> int:
    """Ask for huge pages of every mapped file that one of the arrays lies in; how many files were asked for."""
    files = {id(file): file for file in map(_file_of, arrays) if file is not None}
    asked = 0
    for file in files.values():
        with suppress(OSError):  # a system without huge pages
            if _HUGE is not None:
                file.madvise(_HUGE)
                asked += 1
    return asked


def read_anywhere(array: np.ndarray) -> bool:
    """Declare that a part of a mapped file is read in no order; False where the system has no ear for it."""
    if _RANDOM is None or WILL_NEED is None or not in_a_file(array):
        return False
    first = -(-array.ctypes.data // PAGE) * PAGE
    size = (array.ctypes.data + array.nbytes) // PAGE * PAGE - first
    if size > 0:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), _RANDOM)
    return True
