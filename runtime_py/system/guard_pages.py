"""Memory for the kernels. With ATHENA_CHECK=1 every array ends at a guard page, which nobody may touch.

Kernels work on addresses and check nothing. Under ATHENA_CHECK=1 each array they get is a copy of its own whose last
byte is the last of a page and whose next page is a guard page, so that reading or writing one byte too many ends the
process at once instead of passing unnoticed. Slow and hungry; `make test` runs the engine's tests that way.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
from functools import cache

import numpy as np

ALIGN = 64
_PAGE = mmap.PAGESIZE
_PROT_NONE = 0


def checking() -> bool:
    """Whether ATHENA_CHECK=1 was set."""
    return os.environ.get("ATHENA_CHECK") == "1"


def aligned_bytes(size: int) -> np.ndarray:
    """uint8 [size] of zeros whose address is a multiple of 64; pages are only taken when touched.

    While checking, `size` is rounded up to a multiple of 64 by bytes in front of the guard page.
    """
    if checking():
        return _guarded(size)
    raw = np.zeros(size + ALIGN, np.uint8)
    start = -raw.ctypes.data % ALIGN
    return raw[start : start + size]


def result_array(shape: tuple[int, ...]) -> np.ndarray:
    """float32 memory for results that leave the engine."""
    size = 4 * math.prod(shape)
    return _guarded(size).view(np.float32).reshape(shape) if checking() else np.empty(shape, np.float32)


def settled(array: np.ndarray) -> np.ndarray:
    """A C-contiguous array that kernels may read by address: itself, or while checking a copy behind a guard page."""
    array = np.ascontiguousarray(array)
    if not checking() or array.nbytes == 0:
        return array
    copy = _guarded(array.nbytes).view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _guarded(size: int) -> np.ndarray:
    wide = -(-max(size, 1) // ALIGN) * ALIGN
    pages = -(-wide // _PAGE)
    region = mmap.mmap(-1, (pages + 1) * _PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(region))
    if _libc().mprotect(ctypes.c_void_p(address + pages * _PAGE), ctypes.c_size_t(_PAGE), _PROT_NONE) != 0:
        raise OSError(ctypes.get_errno(), "mprotect failed")
    start = pages * _PAGE - wide
    return np.frombuffer(region, np.uint8)[start : start + size]
