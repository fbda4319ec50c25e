"""The driver of products with picked experts: work items are rows of one pick."""

from __future__ import annotations

import numba as nb

from runtime_py.engine.kernels.matvec import matvec_rows
from runtime_py.engine.kernels.quantize import HIGH_TOKEN, quantize_token
from runtime_py.engine.loop.dispatch import by_width
from runtime_py.simd.atomics import fetch_add
from runtime_py.simd.vectors import get_i64

_ITEM_BYTES = 65536  # codes that a work item reads
_matvec = by_width(matvec_rows)


@nb.njit(cache=True)
def run_experts(s, isa, widths, offset, tokens, counter, scratch):
    """An ExpertMatMul. Every pick is a product of one token, so that no token changes what another one gives.

    A thread makes the input of its item integers itself, unless it was that of the item before.
    """
    blocks = (s.columns + 255) // 256
    sums = scratch + (s.columns + 63) // 64 * 64
    scales = sums + 64 * blocks
    high = scales + 64 * blocks
    rest = high + HIGH_TOKEN * blocks
    size = max(_ITEM_BYTES // s.row_bytes, 1)
    parts = (s.rows + size - 1) // size
    known = nb.int64(-1)
    item = fetch_add(counter, 1)
    while item < tokens * s.count * parts:
        pick = item // parts
        token = pick // s.count
        own = pick if s.apart != 0 else token
        if own != known:
            x = s.source + 4 * (token * s.stride + pick % s.count * s.apart)
            quantize_token(isa, offset, x, s.columns, 0, blocks, scratch, sums, scales, high)
            known = own
        expert = min(max(get_i64(s.picked + 8 * pick), 0), s.experts - 1)
        first = expert * s.rows + item % parts * size
        last = min(first + size, (expert + 1) * s.rows)
        out = s.out + 4 * (pick - expert) * s.rows  # rows are counted over all experts
        arguments = (s.matrix, scratch, sums, scales, high, first, last, out, s.bias, s.accumulate != 0, rest)
        _matvec(isa, widths, s.width, arguments)
        item = fetch_add(counter, 1)
