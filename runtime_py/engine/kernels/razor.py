"""Activations as razored codes, in the two layouts the integer products read.

One token: codes int8 in column order; sums int32 [columns / 64, 16], lane l minus the instruction set's weight offset
times the sum of columns 4l..4l+3; shifts int32 of the same shape, the flag of each lane's group. Several tokens: codes
[groups of 16 tokens, columns / 4, 16, 4]; sums and shifts int32 [groups of 16 tokens, razor groups, 16]. Columns are
padded with zeros to a multiple of 64. units: float32 [tokens]. Razor groups are 16, 32, 64, 128 or 256 columns long.
"""

from __future__ import annotations

import numba as nb
import numpy as np

from runtime_py.engine.layout.razor import BASIS, EVEN, TWOS, WIDTH
from runtime_py.simd.integers import (
    absolute_ints,
    and_ints,
    leading,
    minimum_ints,
    or_ints,
    or_lanes,
    shift_right,
    splat_int,
    subtract_ints,
    with_sign,
)
from runtime_py.simd.lowering import dot
from runtime_py.simd.tile import transpose16
from runtime_py.simd.vectors import (
    absolute,
    add,
    add_ints,
    divide,
    get_i32,
    load_bytes,
    load_floats,
    load_int8s,
    load_some,
    max_floats,
    maximum,
    minimum,
    negated_times,
    one_bytes,
    put_f32,
    put_i32,
    rounded,
    splat_float,
    store_int8s,
    store_ints,
    subtract,
    sum_floats,
    sum_ints,
    zero_floats,
    zero_ints,
)

_F = np.float32


@nb.njit(cache=True, inline="always")
def form_limit(form):
    """Largest magnitude of the integers before razoring, as a float32."""
    return _F((1 << (((form >> BASIS) & 255) - 1)) - 1)


@nb.njit(cache=True, inline="always")
def sixteen(source, columns, k):
    """16 floats from column k on, zeros behind the last column."""
    if k + 16 <= columns:
        return load_floats(source + 4 * k)
    return load_some(source + 4 * k, max(columns - k, 0))


@nb.njit(cache=True, inline="always")
def integers(values, unit, limit):
    """round(values / unit) half to even, clipped to the limit: Ints."""
    scaled = divide(values, splat_float(unit))
    return rounded(maximum(minimum(scaled, splat_float(limit)), splat_float(-limit)))


@nb.njit(cache=True, inline="always")
def flag_of(ored, form):
    """Low bits that a group drops, from the OR of its magnitudes."""
    return max(leading(ored) - (((form >> WIDTH) & 255) - 1), 0)


@nb.njit(cache=True, inline="always")
def razored(q, flag, form):
    """Codes of 16 integers of a group with this flag."""
    shift, size = splat_int(nb.int32(flag)), absolute_ints(q)
    highest = (1 << (((form >> WIDTH) & 255) - 1)) - 1
    if flag > 0:
        half = splat_int(nb.int32(1 << (flag - 1)))
        if (form >> EVEN) & 1:
            odd = and_ints(shift_right(size, shift), splat_int(nb.int32(1)))
            size = add_ints(subtract_ints(add_ints(size, half), splat_int(nb.int32(1))), odd)
        else:
            size = add_ints(size, half)
        size = shift_right(size, shift)
    if (form >> TWOS) & 1:  # the one negative code without a positive partner
        signed = with_sign(minimum_ints(size, splat_int(nb.int32(highest + 1))), q)
        return minimum_ints(signed, splat_int(nb.int32(highest)))
    return with_sign(minimum_ints(size, splat_int(nb.int32(highest))), q)


@nb.njit(cache=True)
def token_unit(source, columns, unit, form):
    """The unit of one token: `unit`, or where that is 0 its largest magnitude over the limit."""
    if unit > _F(0.0):
        return unit
    top = zero_floats()
    for k in range(0, columns, 16):
        top = maximum(top, absolute(sixteen(source, columns, k)))
    largest = max_floats(top)
    return largest / form_limit(form) if largest > _F(0.0) else _F(1.0)


@nb.njit(cache=True)
def nothing(source, columns):
    """0, or NaN where a number is NaN or infinite: codes cannot say so, the token's unit can."""
    none = zero_floats()
    for k in range(0, columns, 16):
        x = sixteen(source, columns, k)
        none = add(none, subtract(x, x))
    return sum_floats(none)


@nb.njit(cache=True)
def _razor_part(source, columns, wide, group, unit, form, target, flags):
    """Codes of `columns` floats, padded to `wide`, at target; the flag of each razor group as int32 at flags."""
    limit = form_limit(form)
    for start in range(0, wide, group):
        stop = min(start + group, wide)
        ored = zero_ints()
        for k in range(start, stop, 16):
            ored = or_ints(ored, absolute_ints(integers(sixteen(source, columns, k), unit, limit)))
        flag = flag_of(or_lanes(ored), form)
        put_i32(flags + 4 * (start // group), nb.int32(flag))
        for k in range(start, stop, 16):
            store_int8s(target + k, razored(integers(sixteen(source, columns, k), unit, limit), flag, form))


@nb.njit(cache=True)
def razor_token(isa, offset, source, columns, group, unit, form, first, last, codes, sums, shifts, units, scratch):
    """Blocks first..last - 1 (256 columns) of one token, in the layout for one token. scratch: 128 bytes."""
    step = token_unit(source, columns, unit, form)
    if first == 0:
        put_f32(units, step + nothing(source, columns))
    for b in range(first, last):
        left = min(columns - 256 * b, 256)
        wide = (left + 63) // 64 * 64
        _razor_part(source + 1024 * b, left, wide, group, step, form, codes + 256 * b, scratch)
        for s in range(wide // 64):
            lanes = dot(isa, zero_ints(), one_bytes(), load_bytes(codes + 256 * b + 64 * s))
            place = 64 * (4 * b + s)
            store_ints(sums + place, negated_times(lanes, offset))
            for lane in range(16):
                column = 64 * s + 4 * lane
                put_i32(shifts + place + 4 * lane, get_i32(scratch + 4 * (column // group)))


@nb.njit(cache=True)
def razor_group_of_tokens(
    isa, offset, source, stride, columns, group, unit, form, which, tokens, first, last, codes, sums, shifts, units,
    scratch,
):  # fmt: skip
    """Blocks first..last - 1 of the (up to 16) tokens of group number `which`, in the layout for several tokens.

    source: float32 rows of the whole batch, `stride` floats apart. scratch: 4096 + 128 bytes.
    """
    wide_all, groups = (columns + 63) // 64 * 64, (columns + group - 1) // group
    count = min(tokens - 16 * which, 16)
    for b in range(first, last):
        left = min(columns - 256 * b, 256)
        wide = (left + 63) // 64 * 64
        some = (left + group - 1) // group
        place = (which * groups + 256 * b // group) * 64
        for t in range(count):
            x = source + 4 * (16 * which + t) * stride
            step = token_unit(x, columns, unit, form)
            if b == 0:
                put_f32(units + 4 * (16 * which + t), step + nothing(x, columns))
            _razor_part(x + 1024 * b, left, wide, group, step, form, scratch + 256 * t, scratch + 4096)
            for g in range(some):
                put_i32(shifts + place + 64 * g + 4 * t, get_i32(scratch + 4096 + 4 * g))
                lanes = zero_ints()
                for k in range(g * group, min((g + 1) * group, wide), 16):
                    lanes = add_ints(lanes, load_int8s(scratch + 256 * t + k))
                put_i32(sums + place + 64 * g + 4 * t, nb.int32(-offset * sum_ints(lanes)))
        target = codes + which * wide_all * 16 + b * 4096
        for k in range(0, wide, 64):
            transpose16(scratch + k, 256, target + 16 * k, 64)
