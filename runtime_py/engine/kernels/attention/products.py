"""Products of attention: queries with cached keys, and the softmax's weights with cached values.

Sixteen keys, or sixteen numbers of a value, are one vector; every sum has its own place in it and is added up in the
order of the queries' numbers, or of the keys, however many rows and vectors are computed side by side.
"""

from __future__ import annotations

import numba as nb
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from runtime_py.engine.layout.attention import HALF_ITEM, KEYS, ROWS
from runtime_py.machine.processor import target
from runtime_py.simd.vectors import FLOAT, HALF, I64, Floats, call, load, pointer, splat

_FEW = 4  # vectors of 16 sums in registers, where these are not 32 of 64 bytes


def _sums_at_once(most: int) -> int:
    """How many of so many vectors of sums are computed side by side."""
    return most if "avx512f" in target().needs else min(most, _FEW)


@intrinsic(prefer_literal=True)
def attention_product(
    typingctx, rows, beside, item, vectors, vector_stride, beside_stride, count, numbers, number_stride, row_stride,
    out, out_stride, add_to,
):  # fmt: skip
    """out[r, j] (16 floats) = sum over i < count of numbers[r, i] * vectors[j, i], for literal numbers of both.

    A vector is 16 halfs (item HALF_ITEM) or floats (FLOAT_ITEM). Strides in bytes: between vectors, between those of
    one j and the next, between numbers of a row, between rows of numbers, between rows of out, whose j lie side by
    side. With add_to (literal 1) the sums start from out. Several sums at a time hide how long one addition takes.
    """
    height, columns, start_from_out = rows.literal_value, beside.literal_value, add_to.literal_value

    def codegen(context, builder, signature, args):
        most = _sums_at_once(height * columns)
        tall = min(height, most)
        wide = max(most // tall, 1)
        for row in range(0, height, tall):
            for column in range(0, columns, wide):
                emit(
                    builder, args, range(row, min(row + tall, height)), range(column, min(column + wide, columns))
                )  # fmt: skip
        return context.get_dummy_value()

    def emit(builder, args, some, side):
        _, _, item, vectors, vector_stride, beside_stride, count, numbers, number_stride, row_stride, *end = args
        out, out_stride, _ = end

        def place(start, stride, index):
            return builder.add(start, builder.mul(stride, ir.Constant(I64, index)))

        zero = ir.Constant(Floats.llvm, [0.0] * 16)
        row_at = [place(numbers, row_stride, r) for r in some]
        lanes_at = [place(vectors, beside_stride, j) for j in side]
        line_at = {r: place(out, out_stride, r) for r in some}
        out_at = {(r, j): builder.add(line_at[r], ir.Constant(I64, 64 * j)) for r in some for j in side}
        acc = {which: cgutils.alloca_once(builder, Floats.llvm) for which in out_at}
        for which, where in out_at.items():
            builder.store(load(builder, where, Floats.llvm) if start_from_out else zero, acc[which])

        def add_products(stored):
            with cgutils.for_range(builder, count) as loop:
                along, offset = builder.mul(loop.index, vector_stride), builder.mul(loop.index, number_stride)
                lanes = [load(builder, builder.add(at, along), ir.VectorType(stored, 16)) for at in lanes_at]
                if stored is not FLOAT:
                    lanes = [builder.fpext(vector, Floats.llvm) for vector in lanes]
                for r, base in zip(some, row_at):
                    number = splat(builder, load(builder, builder.add(base, offset), FLOAT), 16)
                    for j, vector in zip(side, lanes):
                        total = [vector, number, builder.load(acc[r, j])]
                        builder.store(call(builder, "llvm.fma.v16f32", Floats.llvm, total), acc[r, j])

        with builder.if_else(builder.icmp_signed("==", item, ir.Constant(I64, HALF_ITEM))) as (halfs, floats):
            with halfs:
                add_products(HALF)
            with floats:
                add_products(FLOAT)
        for which, where in out_at.items():
            builder.store(builder.load(acc[which]), pointer(builder, where, Floats.llvm), align=1)

    i64 = types.int64
    return types.void(rows, beside, *[i64] * 10, add_to), codegen


@nb.njit(cache=True)
def rows_computed(rows):
    """Of ROWS, how many the products below compute and read where there are so many."""
    return rows if rows <= 4 else ROWS


@nb.njit(cache=True)
def blocks_at_once(rows):
    """Blocks of 16 keys that block_scores takes best for so many rows."""
    return 4 if rows <= 2 else 1


@nb.njit(cache=True)
def block_scores(rows, item, keys, stride, blocks, head_dim, queries, out):
    """Scores of each row for `blocks` blocks of 16 keys, at most blocks_at_once, that lie `stride` bytes apart.

    queries: float32 [head_dim, rows_computed], so that one load has what a vector is multiplied by; out: float32
    [rows_computed, KEYS].
    """
    step, score_row = 16 * item, 4 * KEYS
    if blocks == blocks_at_once(rows):
        if rows == 1:
            attention_product(1, 4, item, keys, step, stride, head_dim, queries, 4, 4, out, score_row, 0)
        elif rows == 2:
            attention_product(2, 4, item, keys, step, stride, head_dim, queries, 8, 4, out, score_row, 0)
        elif rows == 3:
            attention_product(3, 1, item, keys, step, stride, head_dim, queries, 12, 4, out, score_row, 0)
        elif rows == 4:
            attention_product(4, 1, item, keys, step, stride, head_dim, queries, 16, 4, out, score_row, 0)
        else:
            attention_product(8, 1, item, keys, step, stride, head_dim, queries, 32, 4, out, score_row, 0)
        return
    for b in range(blocks):
        at, to = keys + stride * b, out + 64 * b
        if rows == 1:
            attention_product(1, 1, item, at, step, 0, head_dim, queries, 4, 4, to, score_row, 0)
        else:
            attention_product(2, 1, item, at, step, 0, head_dim, queries, 8, 4, to, score_row, 0)


@nb.njit(cache=True)
def mix_values(rows, item, values, width, count, scores, totals):
    """totals [rows_computed, width] += scores [rows_computed, KEYS] times `count` value rows."""
    stride, side, score_row = item * width, 16 * item, 4 * KEYS
    vectors, total_row = width // 16, 4 * width
    d = 0
    while d < vectors:
        v, out = values + side * d, totals + 64 * d
        if rows <= 2 and d + 4 <= vectors:
            if rows == 1:
                attention_product(1, 4, item, v, stride, side, count, scores, 4, score_row, out, total_row, 1)
            else:
                attention_product(2, 4, item, v, stride, side, count, scores, 4, score_row, out, total_row, 1)
            d += 4
            continue
        if rows == 1:
            attention_product(1, 1, item, v, stride, side, count, scores, 4, score_row, out, total_row, 1)
        elif rows == 2:
            attention_product(2, 1, item, v, stride, side, count, scores, 4, score_row, out, total_row, 1)
        elif rows == 3:
            attention_product(3, 1, item, v, stride, side, count, scores, 4, score_row, out, total_row, 1)
        elif rows == 4:
            attention_product(4, 1, item, v, stride, side, count, scores, 4, score_row, out, total_row, 1)
        else:
            attention_product(8, 1, item, v, stride, side, count, scores, 4, score_row, out, total_row, 1)
        d += 1
