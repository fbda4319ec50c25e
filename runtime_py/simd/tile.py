"""The register tile of the matrix product: rows x (16 * vectors) tokens, one block of columns, int32 in registers.

Weights lie as bytes [rows, stride] in natural column order, activations as [columns / 4][16 tokens][4 columns] per
group of 16 tokens, so one broadcast of four weight bytes meets 16 tokens in one integer dot product.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from runtime_py.machine.isa import AMX_ROWS, FEATURES, TILE, has_amx, machine_features
from runtime_py.simd.digits import emit_high_digits, load_places
from runtime_py.simd.lowering import emit_dot
from runtime_py.simd.matrix_products import PAIRED, add_pairs
from runtime_py.simd.vectors import I8, I32, I64, Bytes, Floats, Ints, call, load, pointer, shuffle

_AMX_BESIDE = "avx512vbmi"  # what every processor with AMX has, too

# Fours of weight bytes that a row's load brings, where a dot product takes one of them as it lies in a register. Blocks
# have multiples of 16 of them.
_LANES = {"neondot": 4}


def _add_scaled(builder: ir.IRBuilder, acc: ir.Value, scale: ir.Value, where: ir.Value) -> None:
    """totals at `where` += float(acc) * scale."""
    floats = builder.sitofp(acc, Floats.llvm)
    total = call(builder, "llvm.fma.v16f32", Floats.llvm, [floats, scale, load(builder, where, Floats.llvm)])
    builder.store(total, pointer(builder, where, Floats.llvm), align=1)


def _at(builder: ir.IRBuilder, base: ir.Value, offset: int) -> ir.Value:
    return builder.add(base, ir.Constant(I64, offset))


@intrinsic
def tile_block(
    typingctx, isa, weights, stride, activations, group, sums, scales, per_group, high, per_high, steps, totals
):
    """totals [rows, vectors, 16 tokens] float32 += (int sums of one block) * (activation scale of each token).

    rows and vectors are TILE's of the instruction set. weights: address of the block in row 0, `stride` bytes between
    rows. activations: address of the block in the first group of 16 tokens, `group` bytes between groups. sums int32
    [16] and scales float32 [16] of the block, `per_group` bytes between groups; high: its high digits, `per_high` bytes
    between groups. steps: columns / 4.
    """
    name = isa.value
    height, width = TILE[name]

    def codegen(context, builder, signature, args):
        weights, stride, activations, group, sums, scales, per_group, high, per_high, steps, totals = args[1:]
        start = [
            load(builder, builder.add(sums, builder.mul(per_group, ir.Constant(I64, v))), Ints.llvm)
            for v in range(width)
        ]
        acc = [[cgutils.alloca_once_value(builder, start[v]) for v in range(width)] for _ in range(height)]
        for row in acc:
            for v, slot in enumerate(row):
                builder.store(start[v], slot)
        row_at = [builder.add(weights, builder.mul(stride, ir.Constant(I64, r))) for r in range(height)]
        group_at = [builder.add(activations, builder.mul(group, ir.Constant(I64, v))) for v in range(width)]
        for v in range(width):
            own = builder.add(high, builder.mul(per_high, ir.Constant(I64, v)))
            places = load_places(builder, own)
            with builder.if_then(builder.icmp_signed("!=", places, ir.Constant(I64, 0)), likely=False):
                column = [acc[r][v] for r in range(height)]
                emit_high_digits(builder, name, places, own, row_at, column)
                for slot in column:
                    builder.store(builder.add(builder.load(slot), start[v]), slot)
        if name in PAIRED:
            add_pairs(builder, row_at, group_at, steps, acc)
            lanes, steps = 1, ir.Constant(I64, 0)
        else:
            lanes = _LANES.get(name, 1)
        with cgutils.for_range(builder, builder.udiv(steps, ir.Constant(I64, lanes))) as loop:
            dword = builder.mul(loop.index, ir.Constant(I64, 4 * lanes))
            line = builder.mul(loop.index, ir.Constant(I64, 64 * lanes))
            few = [load(builder, builder.add(at, dword), ir.VectorType(I32, lanes)) for at in row_at]
            for lane in range(lanes):
                tokens = [load(builder, _at(builder, builder.add(g, line), 64 * lane), Bytes.llvm) for g in group_at]
                for r in range(height):
                    broadcast = builder.bitcast(shuffle(builder, few[r], [lane] * 16), Bytes.llvm)
                    for v in range(width):
                        slot = acc[r][v]
                        builder.store(emit_dot(builder, name, builder.load(slot), broadcast, tokens[v]), slot)
        for v in range(width):
            scale = load(builder, builder.add(scales, builder.mul(per_group, ir.Constant(I64, v))), Floats.llvm)
            for r in range(height):
                _add_scaled(builder, builder.load(acc[r][v]), scale, _at(builder, totals, 64 * (r * width + v)))
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(isa, *[i64] * 11), codegen


def _tile_call(builder: ir.IRBuilder, name: str, tiles: list[int], args: list[ir.Value]) -> None:
    if not has_amx():  # the caller's branch is never taken: leave it empty
        return
    call(builder, f"llvm.x86.{name}", ir.VoidType(), [*(ir.Constant(I8, t) for t in tiles), *args])


@intrinsic
def amx_configure(typingctx, address):
    """Load the tile configuration (64 bytes at `address`); the operating system must have allowed AMX."""

    def codegen(context, builder, signature, args):
        _tile_call(builder, "ldtilecfg", [], [pointer(builder, args[0], I8)])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def amx_release(typingctx):
    """Give the tile registers back."""

    def codegen(context, builder, signature, args):
        _tile_call(builder, "tilerelease", [], [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def amx_block(
    typingctx, weights, stride, activations, group, sums, scales, per_group, high, per_high, steps, totals, spill
):
    """tile_block for 32 rows and 2 groups of tokens on AMX tiles; steps: columns / 64; spill: 4096 bytes of scratch."""

    def codegen(context, builder, signature, args):
        if not machine_features().issuperset(FEATURES[_AMX_BESIDE]):  # never reached, and it could not be compiled
            return context.get_dummy_value()
        weights, stride, activations, group, sums, scales, per_group, high, per_high, steps, totals, spill = args
        line = ir.Constant(I64, 64)
        for tile in range(4):
            _tile_call(builder, "tilezero", [tile], [])
        lower = builder.add(weights, builder.mul(stride, ir.Constant(I64, 16)))
        second = builder.add(activations, group)
        with cgutils.for_range(builder, steps) as loop:
            column = builder.mul(loop.index, line)
            block = builder.mul(loop.index, ir.Constant(I64, 1024))
            for tile, base in ((4, weights), (5, lower)):
                _tile_call(builder, "tileloadd64", [tile], [pointer(builder, builder.add(base, column), I8), stride])
            for tile, base in ((6, activations), (7, second)):
                _tile_call(builder, "tileloadd64", [tile], [pointer(builder, builder.add(base, block), I8), line])
            for tile, (w, a) in enumerate(((4, 6), (4, 7), (5, 6), (5, 7))):
                _tile_call(builder, "tdpbusd", [tile, w, a], [])
        for tile in range(4):
            _tile_call(builder, "tilestored64", [tile], [pointer(builder, _at(builder, spill, 1024 * tile), I8), line])
        for v in range(2):
            offset = builder.mul(per_group, ir.Constant(I64, v))
            start = load(builder, builder.add(sums, offset), Ints.llvm)
            scale = load(builder, builder.add(scales, offset), Floats.llvm)
            own = builder.add(high, builder.mul(per_high, ir.Constant(I64, v)))
            places = load_places(builder, own)
            with builder.if_then(builder.icmp_signed("!=", places, ir.Constant(I64, 0)), likely=False):
                for tile, base in ((v, weights), (2 + v, lower)):
                    _add_high_digits(builder, places, own, base, stride, _at(builder, spill, 1024 * tile))
            for r in range(AMX_ROWS):
                acc = load(builder, _at(builder, spill, 1024 * (r // 16 * 2 + v) + 64 * (r % 16)), Ints.llvm)
                _add_scaled(builder, builder.add(acc, start), scale, _at(builder, totals, 64 * (2 * r + v)))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 12), codegen


def _add_high_digits(
    builder: ir.IRBuilder, places: ir.Value, high: ir.Value, weights: ir.Value, stride: ir.Value, sums: ir.Value
) -> None:
    """Add 255 times the products with high digits to the sums of one AMX tile: int32 [16 rows, 16 tokens]."""
    slots = [cgutils.alloca_once(builder, Ints.llvm) for _ in range(16)]
    rows = [builder.add(weights, builder.mul(stride, ir.Constant(I64, r))) for r in range(16)]
    emit_high_digits(builder, _AMX_BESIDE, places, high, rows, slots)
    for r, slot in enumerate(slots):
        at = pointer(builder, _at(builder, sums, 64 * r), Ints.llvm)
        low = builder.load(at)
        low.align = 1
        builder.store(builder.add(low, builder.load(slot)), at, align=1)


@intrinsic
def transpose16(typingctx, source, stride, target, target_stride):
    """Write the transpose of the 16 x 16 float32 matrix at `source` to `target`; strides in bytes between rows."""

    def codegen(context, builder, signature, args):
        source, stride, target, target_stride = args
        rows = [
            load(builder, builder.add(source, builder.mul(stride, ir.Constant(I64, r))), Floats.llvm) for r in range(16)
        ]
        for half in (8, 4, 2, 1):  # swap the off-diagonal blocks of size half
            for r in range(16):
                if r & half:
                    continue
                a, b = rows[r], rows[r + half]
                first = [i if not i & half else i - half + 16 for i in range(16)]
                second = [i + half if not i & half else i + 16 for i in range(16)]
                rows[r], rows[r + half] = shuffle(builder, a, first, b), shuffle(builder, a, second, b)
        for r, value in enumerate(rows):
            where = builder.add(target, builder.mul(target_stride, ir.Constant(I64, r)))
            builder.store(value, pointer(builder, where, Floats.llvm), align=1)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), codegen
