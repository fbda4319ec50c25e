"""Activations in channel groups a power of two apart (export/contract/operators/tender.py), in the layouts of razor.py.

What razor.py finds in each group of a token is known beforehand here: where each channel lies, what is subtracted
from it, and the shift of each run of places.
"""

from __future__ import annotations

import numba as nb
import numpy as np

from runtime_py.engine.kernels.razor import integers, nothing
from runtime_py.simd.lowering import dot
from runtime_py.simd.tile import transpose16
from runtime_py.simd.vectors import (
    add_ints,
    get_f32,
    get_i32,
    get_i64,
    load_bytes,
    load_floats,
    load_int8s,
    negated_times,
    one_bytes,
    put_f32,
    put_i32,
    store_int8s,
    store_ints,
    subtract,
    sum_ints,
    zero_ints,
)

_GATHERED = 4096 + 64  # bytes of scratch memory behind which 16 floats are put together
_F = np.float32


@nb.njit(cache=True)
def _part(source, order, middle, steps, limit, first, last, wide, log_group, target, gathered):
    """Codes of places first..last - 1 (256 at most), padded with zeros to `wide`, at target. gathered: 64 bytes."""
    for k in range(0, wide, 16):
        if first + k >= last:
            store_int8s(target + k, zero_ints())
            continue
        for lane in range(16):
            channel = get_i64(order + 8 * (first + k + lane))
            put_f32(gathered + 4 * lane, get_f32(source + 4 * channel) if channel >= 0 else _F(0.0))
        rest = subtract(load_floats(gathered), load_floats(middle + 4 * (first + k)))
        step = get_f32(steps + 4 * ((first + k) >> log_group))
        store_int8s(target + k, integers(rest, step, limit))


@nb.njit(cache=True, inline="always")
def _log(group):
    """Its logarithm; groups are 16, 32, 64, 128 or 256 long."""
    found = 4
    while (1 << found) < group:
        found += 1
    return found


@nb.njit(cache=True)
def tender_token(
    isa, offset, source, columns, places, group, unit, limit, order, middle, steps, raised, first, last, codes, sums,
    shifts, units, scratch,
):  # fmt: skip
    """Blocks first..last - 1 (256 places) of one token, in the layout for one token. scratch: 4096 + 128 bytes."""
    log_group, most = _log(group), _F(limit)
    if first == 0:
        put_f32(units, unit + nothing(source, columns))
    for b in range(first, last):
        left = min(places - 256 * b, 256)
        wide = (left + 63) // 64 * 64
        at = codes + 256 * b
        _part(source, order, middle, steps, most, 256 * b, 256 * b + left, wide, log_group, at, scratch + _GATHERED)
        for s in range(wide // 64):
            place = 64 * (4 * b + s)
            store_ints(sums + place, negated_times(dot(isa, zero_ints(), one_bytes(), load_bytes(at + 64 * s)), offset))
            for lane in range(16):
                column = 256 * b + 64 * s + 4 * lane
                shift = get_i32(raised + 4 * (column >> log_group)) if column < places else nb.int32(0)
                put_i32(shifts + place + 4 * lane, shift)


@nb.njit(cache=True)
def tender_group_of_tokens(
    isa, offset, source, stride, columns, places, group, unit, limit, order, middle, steps, raised, which, tokens,
    first, last, codes, sums, shifts, units, scratch,
):  # fmt: skip
    """Blocks first..last - 1 of the (up to 16) tokens of group number `which`, in the layout for several tokens.

    source: float32 rows of the whole batch, `stride` floats apart. scratch: 4096 + 128 bytes.
    """
    log_group, most = _log(group), _F(limit)
    wide_all, runs = (places + 63) // 64 * 64, places >> log_group
    count = min(tokens - 16 * which, 16)
    for b in range(first, last):
        left = min(places - 256 * b, 256)
        wide = (left + 63) // 64 * 64
        place = (which * runs + ((256 * b) >> log_group)) * 64
        for t in range(count):
            x = source + 4 * (16 * which + t) * stride
            if b == 0:
                put_f32(units + 4 * (16 * which + t), unit + nothing(x, columns))
            own = scratch + 256 * t
            _part(x, order, middle, steps, most, 256 * b, 256 * b + left, wide, log_group, own, scratch + _GATHERED)
            for g in range(left >> log_group):
                put_i32(shifts + place + 64 * g + 4 * t, get_i32(raised + 4 * (((256 * b) >> log_group) + g)))
                lanes = zero_ints()
                for k in range(g * group, (g + 1) * group, 16):
                    lanes = add_ints(lanes, load_int8s(own + k))
                put_i32(sums + place + 64 * g + 4 * t, nb.int32(-offset * sum_ints(lanes)))
        target = codes + which * wide_all * 16 + b * 4096
        for k in range(0, wide, 64):
            transpose16(scratch + k, 256, target + 16 * k, 64)
