"""Many tokens times a codebook matrix: bound by arithmetic, so a tile of rows is decoded once and used for all tokens.

A work item is one tile of rows: its codes become bytes in scratch memory (first-level cache), then every group of 16
tokens passes by in the register tile of simd/tile.py, one block of 256 columns after the other; inside a block the
integers are exact.
"""

from __future__ import annotations

import numba as nb

from runtime_py.engine.kernels.matrix import tail_codes, unpack_block
from runtime_py.engine.kernels.paths import begin, enter_row, follow, weights
from runtime_py.engine.kernels.reading import read_matrix
from runtime_py.engine.layout.products import (
    BIASES,
    HIGH_GROUP,
    MAX_ROWS,
    SCALES,
    SCRATCH_BYTES,
    SPILL,
    TOTALS,
    TURNED,
)
from runtime_py.simd.codes import lookup, table
from runtime_py.simd.tile import amx_block, tile_block, transpose16
from runtime_py.simd.vectors import (
    add,
    get_f32,
    load_floats,
    load_some,
    multiply,
    prefetch,
    put_f32,
    store_bytes,
    store_floats,
    store_some,
    zero_floats,
)

_AHEAD = 4096  # as in matvec.py


@nb.njit(cache=True)
def decode_rows(isa, width, matrix, first, last, target, stride, scratch):
    """Rows first..last - 1 as bytes (weights plus the instruction set's offset), `stride` bytes apart, at target."""
    m = read_matrix(matrix)
    block_bytes = 32 * m.bits
    states = scratch + 256
    begin(width, matrix, first, states, scratch)
    for n in range(first, last):
        enter_row(width, matrix, n, states)
        state = states
        entries = table(isa, width, m.book + n // m.book_rows * m.book_bytes)
        at, to = m.codes + n * m.row_bytes, target + (n - first) * stride
        for _ in range(m.blocks):
            prefetch(at + _AHEAD)
            prefetch(at + _AHEAD + 64)
            w0, w1, w2, w3 = weights(isa, width, entries, at, state)
            store_bytes(to, w0)
            store_bytes(to + 64, w1)
            store_bytes(to + 128, w2)
            store_bytes(to + 192, w3)
            at += block_bytes
            to += 256
            state += 256
        if m.tail > 0:
            prefetch(at + _AHEAD)
            if m.tail % 64 != 0:
                unpack_block(at, m.bits, m.tail, scratch)
            for s in range((m.tail + 63) // 64):
                code = follow(width, tail_codes(width, m.tail, at, scratch, s), state + 64 * s)
                store_bytes(to + 64 * s, lookup(isa, width, entries, code))


@nb.njit(cache=True, inline="always")
def _tile(isa, rows, vectors, amx, weights, wide, columns, group, quantized, sums, scales, high, scratch):
    """Sums of one row tile and up to `vectors` token groups, into scratch + TOTALS: float32 [rows, vectors, 16]."""
    totals, blocks = scratch + TOTALS, (columns + 255) // 256
    for i in range(rows * vectors):
        store_floats(totals + 64 * i, zero_floats())
    base, place, per_group = quantized + group * wide * 16, group * blocks * 64, blocks * 64
    for b in range(blocks):
        left = (min(columns - 256 * b, 256) + 63) // 64
        w, a, at = weights + 256 * b, base + 4096 * b, place + 64 * b
        own, next_own = high + (group * blocks + b) * HIGH_GROUP, blocks * HIGH_GROUP
        if amx:
            spill = scratch + SPILL
            amx_block(w, wide, a, wide * 16, sums + at, scales + at, per_group, own, next_own, left, totals, spill)
        else:
            tile_block(
                isa, w, wide, a, wide * 16, sums + at, scales + at, per_group, own, next_own, 16 * left, totals
            )  # fmt: skip


@nb.njit(cache=True)
def finish_tile(out, tokens, group, groups, vectors, count, first, rows, accumulate, scratch):
    """Scale the tile's sums and write (or add) them to out [tokens, rows], rows first..first + count - 1.

    scratch has the rows' SCALES and BIASES.
    """
    for v in range(min(vectors, groups - group)):
        for start in range(0, count, 16):
            transpose16(scratch + TOTALS + 64 * (start * vectors + v), 64 * vectors, scratch + TURNED, 64)
            factor, shift = load_floats(scratch + SCALES + 4 * start), load_floats(scratch + BIASES + 4 * start)
            some = min(count - start, 16)
            for t in range(min(tokens - 16 * (group + v), 16)):
                where = out + 4 * ((16 * (group + v) + t) * rows + first + start)
                value = add(multiply(load_floats(scratch + TURNED + 64 * t), factor), shift)
                if accumulate:
                    value = add(value, load_some(where, some))
                store_some(where, value, some)


@nb.njit(cache=True)
def _enter(isa, width, matrix, first, count, bias, scratch):
    """Weights, scales and biases of a tile's rows, where the scratch memory has them."""
    m = read_matrix(matrix)
    weights, wide = scratch + SCRATCH_BYTES, (m.columns + 63) // 64 * 64
    decode_rows(isa, width, matrix, first, first + count, weights, wide, weights + MAX_ROWS * wide)
    for r in range(count):
        put_f32(scratch + SCALES + 4 * r, get_f32(m.scale + (first + r) // m.scale_rows * 4))
        put_f32(scratch + BIASES + 4 * r, get_f32(bias + 4 * (first + r)) if bias != 0 else nb.float32(0.0))


@nb.njit(cache=True)
def tile_of_rows(isa, width, tile, matrix, first, count, quantized, sums, scales, high, tokens, out, bias, scratch):
    """Rows first..first + count - 1, of one tile at most, for `tokens` of up to all groups of a tile.

    out: float32 [tokens, count]; bias: of all rows, or 0; scratch: scratch_bytes().
    """
    rows, vectors, amx = tile
    m = read_matrix(matrix)
    wide = (m.columns + 63) // 64 * 64
    weights = scratch + SCRATCH_BYTES
    _enter(isa, width, matrix, first, count, bias, scratch)
    groups = (tokens + 15) // 16
    for group in range(0, groups, vectors):
        _tile(isa, rows, vectors, amx, weights, wide, m.columns, group, quantized, sums, scales, high, scratch)
        finish_tile(out, tokens, group, groups, vectors, count, 0, count, False, scratch)


@nb.njit(cache=True)
def matmul_item(
    isa, width, tile, matrix, item, quantized, sums, scales, high, tokens, out, bias, accumulate, threads, scratch
):
    """Row tile number `item` for all tokens. tile: (rows, vectors, AMX), tile_shape(); scratch: scratch_bytes()."""
    rows, vectors, amx = tile
    m = read_matrix(matrix)
    columns = m.columns
    wide = (columns + 63) // 64 * 64
    first = item * rows
    count = min(rows, m.rows - first)
    weights = scratch + SCRATCH_BYTES
    _enter(isa, width, matrix, first, count, bias, scratch)
    groups = (tokens + 15) // 16
    # The codes of the tile that this thread will probably take next come closer while this one is computed.
    ahead = m.codes + (first + rows * threads) * m.row_bytes
    share = (rows * m.row_bytes * vectors + groups - 1) // groups
    for group in range(0, groups, vectors):
        for k in range(0, share, 64):
            prefetch(ahead + k)
        ahead += share
        _tile(isa, rows, vectors, amx, weights, wide, columns, group, quantized, sums, scales, high, scratch)
        finish_tile(out, tokens, group, groups, vectors, count, first, m.rows, accumulate, scratch)
