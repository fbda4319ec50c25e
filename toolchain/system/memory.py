"""Gives memory that was freed back to the system."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache


def trim() -> None:
    """Give back what glibc keeps of freed memory for later: each thread has its own, so much lies unused.

    Does nothing where the C library has no malloc_trim(3).
    """
    _trim()(0)


@cache
def _trim() -> Callable[[int], object]:
    if sys.platform != "linux":
        return lambda pad: None
    return getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: None)
