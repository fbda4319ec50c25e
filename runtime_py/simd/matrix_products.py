"""The register tile by products of 2 x 8 with 8 x 2 bytes: ARM's `smmla`, twice the products of a dot product.

A register holds the sums of two rows for two tokens. Activations lie in fours of columns for dot products (tile.py), so
two registers of them are joined into eight columns of two tokens each. Four rows: of six, whose sums leave a register
or two, LLVM moves some about in every round (modelled on a Neoverse N2: 34.0 products a cycle, 29.8 of six rows).
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils

from runtime_py.simd.vectors import I8, I32, I64, Ints, call, load, shuffle

PAIRED = ("neoni8mm",)  # instruction sets that have it
_COLUMNS = 8  # of a round
_EIGHT = ir.DoubleType()  # columns of a row, as what a vector register takes
_SUMS, _TWO, _BYTES = ir.VectorType(I32, 4), ir.VectorType(_EIGHT, 2), ir.VectorType(I8, 16)


def add_pairs(
    builder: ir.IRBuilder, rows: list[ir.Value], groups: list[ir.Value], steps: ir.Value, slots: list[list[ir.Value]]
) -> None:
    """slots [rows][groups] (int32 [16 tokens]) += products of one block; steps: its columns / 4.

    rows: addresses of an even number of rows of weights; groups: of activations, [columns / 4][16 tokens][4 columns].
    """
    zero = ir.Constant(_SUMS, [0] * 4)
    for v, group in enumerate(groups):
        sums = [[cgutils.alloca_once(builder, _SUMS) for _ in range(8)] for _ in rows[::2]]
        for pair in sums:
            for slot in pair:
                builder.store(zero, slot)
        with cgutils.for_range(builder, builder.udiv(steps, ir.Constant(I64, _COLUMNS // 4))) as loop:
            column = builder.mul(loop.index, ir.Constant(I64, _COLUMNS))
            line = builder.add(group, builder.mul(loop.index, ir.Constant(I64, 16 * _COLUMNS)))
            eights = [load(builder, builder.add(row, column), _EIGHT) for row in rows]
            twos = [builder.bitcast(_both(builder, a, b), _BYTES) for a, b in zip(eights[::2], eights[1::2])]
            for quarter in range(4):
                first, second = (
                    load(builder, builder.add(line, ir.Constant(I64, 64 * four + 16 * quarter)), _SUMS)
                    for four in range(2)
                )
                for side, lanes in enumerate(([0, 4, 1, 5], [2, 6, 3, 7])):
                    tokens = builder.bitcast(shuffle(builder, first, lanes, second), _BYTES)
                    for two, pair in zip(twos, sums):
                        slot, name = pair[2 * quarter + side], "llvm.aarch64.neon.smmla.v4i32.v16i8"
                        builder.store(call(builder, name, _SUMS, [builder.load(slot), two, tokens]), slot)
        for p, pair in enumerate(sums):
            found = [builder.load(slot) for slot in pair]
            for r, lanes in enumerate(([0, 1, 4, 5], [2, 3, 6, 7])):
                quarters = [shuffle(builder, a, lanes, b) for a, b in zip(found[::2], found[1::2])]
                halves = [shuffle(builder, a, list(range(8)), b) for a, b in zip(quarters[::2], quarters[1::2])]
                total = shuffle(builder, halves[0], list(range(16)), halves[1])
                slot = slots[2 * p + r][v]
                assert total.type == Ints.llvm
                builder.store(builder.add(builder.load(slot), total), slot)


def _both(builder: ir.IRBuilder, first: ir.Value, second: ir.Value) -> ir.Value:
    vector = ir.Constant(_TWO, ir.Undefined)
    for lane, value in enumerate((first, second)):
        vector = builder.insert_element(vector, value, ir.Constant(I32, lane))
    return vector
