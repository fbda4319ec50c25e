"""Runs the step table: one compiled function that every thread of the pool executes from the first step to the last.

Threads take work items of a step from a shared counter and wait at a barrier where a step needs what an earlier one
wrote. Nothing here allocates, checks bounds or knows of models; what a kind of step does is in its driver (driver.py).
"""

from __future__ import annotations

import numba as nb

from runtime_py.engine.kernels.reading import read_call, read_matrix, reader
from runtime_py.engine.loop.driver import drive
from runtime_py.engine.loop.products import RUN_SHARE
from runtime_py.engine.steps import table
from runtime_py.engine.steps.table import ARGUMENTS, STEP
from runtime_py.simd.atomics import barrier
from runtime_py.simd.tile import amx_configure, amx_release
from runtime_py.simd.vectors import get_i64, prefetch

_LOOK_AHEAD = 2  # steps in which a coming product is looked for
_APPROACH_BYTES = 32768

_head = reader(table.Head)
_matmul, _grouped, _razor = (
    reader(table.KINDS[kind], ARGUMENTS) for kind in (table.MATMUL, table.GROUP_MATMUL, table.RAZOR_MATMUL)
)


@nb.njit(cache=True)
def _approach(step, left, thread, threads):
    """Ask for the first codes that this thread will read in the next matrix-vector product, while memory is idle."""
    for ahead in range(1, min(left, _LOOK_AHEAD + 1)):
        later = step + 8 * STEP * ahead
        operation = _head(later).operation
        if operation == table.MATMUL:
            _fetch(_matmul(later), thread, threads)
            return
        if operation == table.GROUP_MATMUL:
            _fetch(_grouped(later), thread, threads)
            return
        if operation == table.RAZOR_MATMUL:
            _fetch(_razor(later), thread, threads)
            return


@nb.njit(cache=True, inline="always")
def _fetch(s, thread, threads):
    start = read_matrix(s.matrix).codes + thread * int(RUN_SHARE * s.rows / threads) * s.row_bytes
    for line in range(0, min(_APPROACH_BYTES, s.rows * s.row_bytes // threads), 64):
        prefetch(start + line)


@nb.njit(cache=True, nogil=True)
def run_steps(drivers, steps, count, call, counters, gate, thread, threads, scratch):
    """Run all steps as thread number `thread` of `threads`.

    drivers: address of int64 [count], the addresses of the steps' drivers. steps: address of int64 [count, STEP]. call:
    address of a Call. counters: address of int64 [count], all zero. gate: of the barrier, two zeroed int64, 64 bytes
    apart. scratch: this thread's own.

    A driver is called with: the address of the call, that of its step, the step's number, the first token and the
    number of tokens that it is for, the address of the step's counter of work items, thread, threads, scratch. Returns
    0, or else some driver has failed; the others went on, because threads wait for one another.
    """
    c, failed = read_call(call), nb.int32(0)
    if c.amx != 0:
        amx_configure(c.amx)
    for i in range(count):
        step = steps + 8 * STEP * i
        head = _head(step)
        operation = head.operation
        product = (
            operation == table.MATMUL or operation == table.GROUP_MATMUL or operation == table.RAZOR_MATMUL
        )  # fmt: skip
        if head.barrier != 0:
            if c.tokens == 1 and c.texts == 0 and not product:
                _approach(step, count - i, thread, threads)
            barrier(gate, threads)
        first, some = nb.int64(0), c.tokens
        if c.last_only != 0 and head.last != 0:
            first, some = c.tokens - 1, nb.int64(1)
        failed |= drive(
            get_i64(drivers + 8 * i), call, step, i, first, some, counters + 8 * i, thread, threads, scratch
        )
    barrier(gate, threads)
    if c.amx != 0:
        amx_release()
    return failed
