"""Asking the system for pages of a mapped file inside compiled code (system/paging.py says what for)."""

from __future__ import annotations

import numba as nb
from numba.core import types
from numba.core.typing import signature

from runtime_py.machine.processor import target

if target().system == "win32":

    @nb.njit(cache=True)
    def will_need(address, size, page):
        """The system cannot be asked."""

else:
    _WILL_NEED = 3  # MADV_WILLNEED of Linux and macOS
    _madvise = types.ExternalFunction("madvise", signature(types.int32, types.int64, types.int64, types.int32))

    @nb.njit(cache=True)
    def will_need(address, size, page):
        """Have these bytes of a mapped file read where they are not there; does not wait. page: bytes of a page."""
        first = address // page * page
        _madvise(first, address + size - first, nb.int32(_WILL_NEED))
