"""Group-scaled codes in vectors: scales spread over lanes, sums that start at the weight offset, the register tile.

`width` is a tag of group_tag() (machine/widths.py): bits, columns of a group (16 to 256, a power of two) and the type
of scales.
Codes of 8 bits are int8 after subtracting 128, as all int8 weights are; shorter ones are multiplied as they are.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from runtime_py.machine.isa import WEIGHT_OFFSET
from runtime_py.simd.codes import code_bits
from runtime_py.simd.digits import emit_high_digits, load_places
from runtime_py.simd.lowering import emit_dot
from runtime_py.simd.tags import TagType
from runtime_py.simd.vectors import FLOAT, HALF, I8, I32, I64, Bytes, Floats, Ints, call, load, pointer, shuffle, splat

# Rows and vectors of 16 tokens: of every sum the registers hold the integers of a group and the floats of a block.
GROUP_TILE = {
    "avx512vbmi": (6, 2),
    "avx512": (6, 2),
    "avx2vnni": (3, 1),
    "avx2": (2, 1),
    "neoni8mm": (3, 1),
    "neondot": (3, 1),
    "neon": (2, 1),
    "portable": (2, 1),
}


def _log_group(width: TagType) -> int:
    return int(width.value) >> 4 & 15


def _scale_type(width: TagType) -> ir.Type:
    return FLOAT if int(width.value) >> 8 else HALF


def _is_offset(isa: str, width: TagType) -> bool:
    """Whether a product of the stored weights has the weight offset in it."""
    return code_bits(width) == 8 and WEIGHT_OFFSET[isa] != 0


def _number(of):  # type: ignore[no-untyped-def]
    """An intrinsic that is a number by the type of its argument."""

    @intrinsic
    def operation(typingctx, tag):
        def codegen(context, builder, signature, args):
            return ir.Constant(I64, of(signature.args[0]))

        return types.int64(tag), codegen

    return operation


group_columns = _number(lambda width: 1 << _log_group(width))
scale_bytes = _number(lambda width: 4 if _scale_type(width) is FLOAT else 2)
weight_offset = _number(lambda isa: WEIGHT_OFFSET[isa.value])
zero_base = _number(lambda width: 128 if code_bits(width) == 8 else 0)  # what codes have lost already
tile_height = _number(lambda isa: GROUP_TILE[isa.value][0])
tile_vectors = _number(lambda isa: GROUP_TILE[isa.value][1])


def _as_floats(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    kind = value.type.element if isinstance(value.type, ir.VectorType) else value.type
    lanes = ir.VectorType(FLOAT, value.type.count) if isinstance(value.type, ir.VectorType) else FLOAT
    return value if kind == FLOAT else builder.fpext(value, lanes)


def _spread(builder: ir.IRBuilder, width: TagType, address: ir.Value, count: int, first_column: int) -> ir.Value:
    """16 lanes of 4 columns each from first_column on, each with its group's scale, of the `count` at the address."""
    kind = _scale_type(width)
    if count == 1:
        return splat(builder, _as_floats(builder, load(builder, address, kind)), 16)
    scales = _as_floats(builder, load(builder, address, ir.VectorType(kind, count)))
    return shuffle(builder, scales, [(first_column + 4 * lane) >> _log_group(width) for lane in range(16)])


@intrinsic(prefer_literal=True)
def block_scales(typingctx, width, address, number):
    """Scales (Floats) of the lanes of segment `number`, a literal 0..3, of a full block whose first is at address."""
    which = number.literal_value

    def codegen(context, builder, signature, args):
        kind = signature.args[0]
        return _spread(builder, kind, args[1], 256 >> _log_group(kind), 64 * which)

    return Floats(width, types.int64, number), codegen


@intrinsic
def segment_scales(typingctx, width, address):
    """Scales (Floats) of the lanes of 64 columns whose first group's is at address; reads those of 64 columns."""

    def codegen(context, builder, signature, args):
        kind = signature.args[0]
        return _spread(builder, kind, args[1], max(64 >> _log_group(kind), 1), 0)

    return Floats(width, types.int64), codegen


@intrinsic
def sixteen_scales(typingctx, width, address):
    """The 16 scales at address, or minima, which are of the same type."""

    def codegen(context, builder, signature, args):
        return _as_floats(builder, load(builder, args[1], ir.VectorType(_scale_type(signature.args[0]), 16)))

    return Floats(width, types.int64), codegen


@intrinsic
def negated_zeros(typingctx, width, address):
    """Minus the 16 zero points (uint8) at address, as floats; codes of 8 bits have lost 128 of them already."""

    def codegen(context, builder, signature, args):
        zeros = builder.zext(load(builder, args[1], ir.VectorType(I8, 16)), Ints.llvm)
        base = 128 if code_bits(signature.args[0]) == 8 else 0
        return builder.sitofp(builder.sub(ir.Constant(Ints.llvm, [base] * 16), zeros), Floats.llvm)

    return Floats(width, types.int64), codegen


@intrinsic
def group_start(typingctx, isa, width, address):
    """What the integer sums of 64 columns begin with: zeros, or what takes the weight offset away, at address."""

    def codegen(context, builder, signature, args):
        if _is_offset(signature.args[0].value, signature.args[1]):
            return load(builder, args[2], Ints.llvm)
        return ir.Constant(Ints.llvm, [0] * 16)

    return Ints(isa, width, types.int64), codegen


def _fma(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
    return call(builder, "llvm.fma.v16f32", Floats.llvm, [a, b, c])


@intrinsic
def group_tile(
    typingctx, isa, width, weights, stride, activations, per_activations, columns, zero, sums, per_sums, scales,
    per_scales, high, per_high, factors, offsets, per_row, totals,
):  # fmt: skip
    """totals [rows, vectors, 16 tokens] float32 += one block: (sum over its groups) * (activation scale of each token).

    The sum over the groups, in order, is of integer sum * factor, then of offset * sum of the activations, each added
    with one rounding. rows and vectors are GROUP_TILE's. weights: address of the block in row 0, `stride` bytes between
    rows; activations as in tile.tile_block, `per_activations` bytes between groups of 16 tokens; columns: of the block,
    a multiple of 4. zero: what all weights are too large by. sums: of the activations, int32 [groups, 16], `per_sums`
    bytes between groups of 16 tokens; scales: float32 [16], `per_scales` bytes; high: the block's high digits,
    `per_high` bytes. factors, offsets: float32 of the block's first group in row 0, `per_row` bytes between rows;
    offsets may be 0 for none.
    """
    name, kind = isa.value, width
    height, vectors = GROUP_TILE[name]
    zero = ir.Constant(Floats.llvm, [0.0] * 16)

    def codegen(context, builder, signature, args):
        (weights, stride, activations, per_activations, columns, zero_point, sums, per_sums, scales, per_scales,
         high, per_high, factors, offsets, per_row, totals) = args[2:]  # fmt: skip

        def placed(base, step, count):
            return [builder.add(base, builder.mul(step, ir.Constant(I64, i))) for i in range(count)]

        def slots(value):
            return [[cgutils.alloca_once_value(builder, value) for _ in range(vectors)] for _ in range(height)]

        negated = splat(builder, builder.neg(builder.trunc(zero_point, I32)), 16)
        acc, inner = slots(ir.Constant(Ints.llvm, [0] * 16)), slots(zero)
        for row in inner:
            for slot in row:
                builder.store(zero, slot)
        row_at, token_at = placed(weights, stride, height), placed(activations, per_activations, vectors)
        high_at = placed(high, per_high, vectors)
        all_places = [load_places(builder, at) for at in high_at]
        factor_at, offset_at, sums_at = (
            placed(base, step, count)
            for base, step, count in ((factors, per_row, height), (offsets, per_row, height), (sums, per_sums, vectors))
        )
        size = ir.Constant(I64, 1 << _log_group(kind))
        groups = builder.udiv(builder.add(columns, builder.sub(size, ir.Constant(I64, 1))), size)
        with cgutils.for_range(builder, groups) as of_groups:
            first, four = builder.mul(of_groups.index, size), builder.mul(of_groups.index, ir.Constant(I64, 4))
            left = builder.sub(columns, first)
            some = builder.select(builder.icmp_signed("<", left, size), left, size)
            line = builder.mul(of_groups.index, ir.Constant(I64, 64))
            token_sums = [load(builder, builder.add(at, line), Ints.llvm) for at in sums_at]
            for v, own in enumerate(token_sums):
                start = builder.mul(own, negated)
                for r in range(height):
                    builder.store(start, acc[r][v])
                steps = builder.udiv(some, ir.Constant(I64, 4))
                ones = builder.lshr(ir.Constant(I64, -1), builder.sub(ir.Constant(I64, 64), steps))
                here = builder.shl(ones, builder.udiv(first, ir.Constant(I64, 4)))
                places = builder.and_(all_places[v], here)
                with builder.if_then(builder.icmp_signed("!=", places, ir.Constant(I64, 0)), likely=False):
                    column = [acc[r][v] for r in range(height)]
                    emit_high_digits(builder, name, places, high_at[v], row_at, column)
                    for slot in column:
                        builder.store(builder.add(builder.load(slot), start), slot)
            with cgutils.for_range(builder, builder.udiv(some, ir.Constant(I64, 4))) as of_steps:
                column = builder.add(first, builder.mul(of_steps.index, ir.Constant(I64, 4)))
                place = builder.mul(column, ir.Constant(I64, 16))
                tokens = [load(builder, builder.add(at, place), Bytes.llvm) for at in token_at]
                for r in range(height):
                    dword = load(builder, builder.add(row_at[r], column), I32)
                    broadcast = builder.bitcast(splat(builder, dword, 16), Bytes.llvm)
                    for v in range(vectors):
                        slot = acc[r][v]
                        builder.store(emit_dot(builder, name, builder.load(slot), broadcast, tokens[v]), slot)

            def add(r, value, factor, v):
                builder.store(_fma(builder, builder.sitofp(value, Floats.llvm), factor, builder.load(inner[r][v])),
                              inner[r][v])  # fmt: skip

            for r in range(height):
                factor = splat(builder, load(builder, builder.add(factor_at[r], four), FLOAT), 16)
                for v in range(vectors):
                    add(r, builder.load(acc[r][v]), factor, v)
            with builder.if_then(builder.icmp_signed("!=", offsets, ir.Constant(I64, 0))):
                for r in range(height):
                    offset = splat(builder, load(builder, builder.add(offset_at[r], four), FLOAT), 16)
                    for v in range(vectors):
                        add(r, token_sums[v], offset, v)
        for v, at in enumerate(placed(scales, per_scales, vectors)):
            scale = load(builder, at, Floats.llvm)
            for r in range(height):
                where = builder.add(totals, ir.Constant(I64, 64 * (r * vectors + v)))
                total = _fma(builder, builder.load(inner[r][v]), scale, load(builder, where, Floats.llvm))
                builder.store(total, pointer(builder, where, Floats.llvm), align=1)
        return context.get_dummy_value()

    return types.void(isa, width, *[types.int64] * 16), codegen
