"""How fast this machine reads memory: the yardstick of decode speed."""

from __future__ import annotations

import time

import runtime_py.system.numba_ready  # noqa: F401 (before Numba)

import numba as nb  # isort: skip
import numpy as np

from runtime_py.simd.atomics import barrier
from runtime_py.simd.vectors import add_ints, load_ints, prefetch, store_ints, zero_ints
from runtime_py.system.guard_pages import aligned_bytes
from runtime_py.system.thread_pool import ThreadPool

_BYTES = 1 << 29  # far more than any cache
_AHEAD = 4096


@nb.njit(cache=True, nogil=True)
def _read(address, size, gate, thread, threads, out):
    """Add up every vector of this thread's share, so that no read can be left out."""
    part = size // threads // 256 * 256
    at, total = address + thread * part, zero_ints()
    for _ in range(part // 256):
        for line in range(0, 256, 64):
            prefetch(at + _AHEAD + line)
        total = add_ints(total, add_ints(load_ints(at), load_ints(at + 64)))
        total = add_ints(total, add_ints(load_ints(at + 128), load_ints(at + 192)))
        at += 256
    store_ints(out + 64 * thread, total)
    barrier(gate, threads)


class Bandwidth:
    """Measures the read bandwidth with a pool of threads."""

    def __init__(self, threads: int) -> None:
        self._threads, self._pool = threads, ThreadPool(threads)
        self._data, self._gate = aligned_bytes(_BYTES), aligned_bytes(128)
        self._data[:] = 1
        self._out = aligned_bytes(64 * threads)

    def measure(self) -> float:
        """Bytes per second of one pass."""
        data, gate, out = self._data.ctypes.data, self._gate.ctypes.data, self._out.ctypes.data
        start = time.perf_counter()
        self._pool.run(lambda t, n: _read(data, _BYTES, gate, t, n, out), self._threads)
        elapsed = time.perf_counter() - start
        if int(self._out.view(np.int32).astype(np.int64).sum()) == 0:
            raise RuntimeError("the memory was not read")
        return _BYTES / elapsed
