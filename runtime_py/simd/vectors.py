"""Vector types and the operations that LLVM lowers well on every machine.

Bytes is 64 x int8, Ints 16 x int32, Floats 16 x float32. Addresses are plain integers (int64): the planner checks all
bounds once, kernels check nothing. Reductions add lanes in a fixed tree, so their rounding is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, register_model

import runtime_py.simd.tags  # noqa: F401 (so that Numba knows them wherever there are vectors)

I8, I16, I32, I64, HALF, FLOAT = (
    ir.IntType(8),
    ir.IntType(16),
    ir.IntType(32),
    ir.IntType(64),
    ir.HalfType(),
    ir.FloatType(),
)


class Vector(types.Type):
    """A vector of 64 bytes: `lanes` elements of the LLVM type named `element`."""

    def __init__(self, element: str, lanes: int) -> None:
        self.element, self.lanes = element, lanes
        super().__init__(name=f"Vector({element}x{lanes})")

    @property
    def llvm(self) -> ir.VectorType:
        return ir.VectorType({"i8": I8, "i32": I32, "f32": FLOAT}[self.element], self.lanes)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Vector) -> None:
        super().__init__(dmm, fe_type, fe_type.llvm)


Bytes, Ints, Floats = Vector("i8", 64), Vector("i32", 16), Vector("f32", 16)


def pointer(builder: ir.IRBuilder, address: ir.Value, to: ir.Type) -> ir.Value:
    """An integer address as a pointer to `to`."""
    return builder.inttoptr(address, to.as_pointer())


def load(builder: ir.IRBuilder, address: ir.Value, to: ir.Type) -> ir.Value:
    """An unaligned load."""
    value = builder.load(pointer(builder, address, to))
    value.align = 1
    return value


def splat(builder: ir.IRBuilder, value: ir.Value, lanes: int) -> ir.Value:
    """A vector with `value` in every lane."""
    vector = ir.VectorType(value.type, lanes)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(I32, 0))
    return builder.shuffle_vector(
        first, ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
    )


def shuffle(builder: ir.IRBuilder, a: ir.Value, lanes: list[int], b: ir.Value | None = None) -> ir.Value:
    """Lanes of a (and of b, counted on from a's) in the given order."""
    other = ir.Constant(a.type, ir.Undefined) if b is None else b
    return builder.shuffle_vector(a, other, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))


def call(builder: ir.IRBuilder, name: str, result: ir.Type, args: list[ir.Value]) -> ir.Value:
    """Call an LLVM intrinsic by its full name."""
    kind = ir.FunctionType(result, [a.type for a in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)


def loader(vector: Vector, stored: ir.Type, convert: Callable[[ir.IRBuilder, ir.Value], ir.Value]) -> Any:
    @intrinsic
    def operation(typingctx, address):
        def codegen(context, builder, signature, args):
            return convert(builder, load(builder, args[0], stored))

        return vector(types.int64), codegen

    return operation


def _storer(vector: Vector, convert: Callable[[ir.IRBuilder, ir.Value], ir.Value]) -> Any:
    @intrinsic
    def operation(typingctx, address, value):
        def codegen(context, builder, signature, args):
            value = convert(builder, args[1])
            builder.store(value, pointer(builder, args[0], value.type), align=1)
            return context.get_dummy_value()

        return types.void(types.int64, vector), codegen

    return operation


def _pure(result: types.Type, arguments: tuple[types.Type, ...], emit: Callable[..., ir.Value]) -> Any:
    """An intrinsic of fixed signature whose code is emit(builder, *values)."""
    if len(arguments) == 0:

        @intrinsic
        def operation(typingctx):
            return result(), lambda context, builder, signature, args: emit(builder)
    elif len(arguments) == 1:

        @intrinsic
        def operation(typingctx, a):
            return result(*arguments), lambda context, builder, signature, args: emit(builder, *args)
    elif len(arguments) == 2:

        @intrinsic
        def operation(typingctx, a, b):
            return result(*arguments), lambda context, builder, signature, args: emit(builder, *args)
    else:

        @intrinsic
        def operation(typingctx, a, b, c):
            return result(*arguments), lambda context, builder, signature, args: emit(builder, *args)

    return operation


def _identity(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    return value


def _repeat(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """Repeat a short vector of bytes until it fills 64."""
    width = value.type.count
    return shuffle(builder, value, [i % width for i in range(64)])


def fold(builder: ir.IRBuilder, value: ir.Value, combine: Callable[[ir.Value, ir.Value], ir.Value]) -> ir.Value:
    """Combine the upper half of the lanes with the lower one until one is left: the same tree on every machine."""
    lanes = value.type.count
    while lanes > 1:
        lanes //= 2
        value = combine(
            shuffle(builder, value, list(range(lanes))), shuffle(builder, value, list(range(lanes, 2 * lanes)))
        )
    return builder.extract_element(value, ir.Constant(I32, 0))


def _maximum(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


load_bytes = loader(Bytes, Bytes.llvm, _identity)
load_ints = loader(Ints, Ints.llvm, _identity)
load_floats = loader(Floats, Floats.llvm, _identity)
load_halfs = loader(Floats, ir.VectorType(HALF, 16), lambda b, v: b.fpext(v, Floats.llvm))
load_int8s = loader(Ints, ir.VectorType(I8, 16), lambda b, v: b.sext(v, Ints.llvm))
broadcast_float = loader(Floats, FLOAT, lambda b, v: splat(b, v, 16))
broadcast_dword = loader(Bytes, I32, lambda b, v: b.bitcast(splat(b, v, 16), Bytes.llvm))

store_bytes = _storer(Bytes, _identity)
store_ints = _storer(Ints, _identity)
store_floats = _storer(Floats, _identity)
store_halfs = _storer(Floats, lambda b, v: b.fptrunc(v, ir.VectorType(HALF, 16)))
store_int8s = _storer(Ints, lambda b, v: b.trunc(v, ir.VectorType(I8, 16)))

zero_floats = _pure(Floats, (), lambda b: ir.Constant(Floats.llvm, [0.0] * 16))
zero_ints = _pure(Ints, (), lambda b: ir.Constant(Ints.llvm, [0] * 16))
zero_bytes = _pure(Bytes, (), lambda b: ir.Constant(Bytes.llvm, [0] * 64))
one_bytes = _pure(Bytes, (), lambda b: ir.Constant(Bytes.llvm, [1] * 64))
splat_float = _pure(Floats, (types.float32,), lambda b, v: splat(b, v, 16))
add = _pure(Floats, (Floats, Floats), lambda b, x, y: b.fadd(x, y))
subtract = _pure(Floats, (Floats, Floats), lambda b, x, y: b.fsub(x, y))
multiply = _pure(Floats, (Floats, Floats), lambda b, x, y: b.fmul(x, y))
divide = _pure(Floats, (Floats, Floats), lambda b, x, y: b.fdiv(x, y))
maximum = _pure(Floats, (Floats, Floats), _maximum)
minimum = _pure(Floats, (Floats, Floats), lambda b, x, y: b.select(b.fcmp_ordered("<", x, y), x, y))
squared_at_most = _pure(  # the lanes of the first whose square is not above the second, zero in the others
    Floats,
    (Floats, Floats),
    lambda b, x, y: b.select(b.fcmp_ordered("<=", b.fmul(x, x), y), x, ir.Constant(Floats.llvm, [0.0] * 16)),
)
absolute = _pure(Floats, (Floats,), lambda b, x: call(b, "llvm.fabs.v16f32", Floats.llvm, [x]))
fused = _pure(Floats, (Floats, Floats, Floats), lambda b, x, y, z: call(b, "llvm.fma.v16f32", Floats.llvm, [x, y, z]))
to_floats = _pure(Floats, (Ints,), lambda b, v: b.sitofp(v, Floats.llvm))
negated_times = _pure(Ints, (Ints, types.int64), lambda b, v, n: b.mul(v, splat(b, b.neg(b.trunc(n, I32)), 16)))
rounded = _pure(Ints, (Floats,), lambda b, v: b.fptosi(call(b, "llvm.roundeven.v16f32", Floats.llvm, [v]), Ints.llvm))
add_ints = _pure(Ints, (Ints, Ints), lambda b, x, y: b.add(x, y))
sum_ints = _pure(types.int32, (Ints,), lambda b, v: fold(b, v, b.add))
sum_floats = _pure(types.float32, (Floats,), lambda b, v: fold(b, v, b.fadd))
max_floats = _pure(types.float32, (Floats,), lambda b, v: fold(b, v, lambda x, y: _maximum(b, x, y)))


def _power_of_two(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """2.0 ** value for an int vector within -126..127, from its bits."""
    biased = builder.add(value, ir.Constant(Ints.llvm, [127] * 16))
    return builder.bitcast(builder.shl(biased, ir.Constant(Ints.llvm, [23] * 16)), Floats.llvm)


power_of_two = _pure(Floats, (Ints,), _power_of_two)


def _first_lanes(builder: ir.IRBuilder, value: ir.Value, count: ir.Value, other: ir.Value) -> ir.Value:
    """Lanes below count from value, the others from `other`."""
    limit = splat(builder, builder.trunc(count, I32), 16)
    lanes = ir.Constant(Ints.llvm, list(range(16)))
    return builder.select(builder.icmp_signed("<", lanes, limit), value, other)


first_lanes = _pure(Floats, (Floats, types.int64, Floats), _first_lanes)


@intrinsic
def store_some(typingctx, address, value, count):
    """Store the first `count` lanes of a Floats vector; the bytes behind them are not touched."""

    def codegen(context, builder, signature, args):
        limit = splat(builder, builder.trunc(args[2], I32), 16)
        mask = builder.icmp_signed("<", ir.Constant(Ints.llvm, list(range(16))), limit)
        where = pointer(builder, args[0], Floats.llvm)
        call(builder, "llvm.masked.store.v16f32.p0", ir.VoidType(), [args[1], where, ir.Constant(I32, 1), mask])
        return context.get_dummy_value()

    return types.void(types.int64, Floats, types.int64), codegen


@intrinsic
def load_some(typingctx, address, count):
    """The first `count` floats at `address`, zeros in the other lanes; nothing behind them is read."""

    def codegen(context, builder, signature, args):
        limit = splat(builder, builder.trunc(args[1], I32), 16)
        mask = builder.icmp_signed("<", ir.Constant(Ints.llvm, list(range(16))), limit)
        where, zero = pointer(builder, args[0], Floats.llvm), ir.Constant(Floats.llvm, [0.0] * 16)
        return call(builder, "llvm.masked.load.v16f32.p0", Floats.llvm, [where, ir.Constant(I32, 1), mask, zero])

    return Floats(types.int64, types.int64), codegen


@intrinsic
def load_some_halfs(typingctx, address, count):
    """The first `count` (below 16) float16 numbers at `address` as floats, zeros in the other lanes."""

    def codegen(context, builder, signature, args):
        value = ir.Constant(ir.VectorType(HALF, 16), [0.0] * 16)
        slot = cgutils.alloca_once(builder, value.type)
        builder.store(value, slot)
        size = builder.mul(args[1], ir.Constant(I64, 2))
        cgutils.raw_memcpy(builder, slot, pointer(builder, args[0], HALF), size, 1)
        return builder.fpext(builder.load(slot), Floats.llvm)

    return Floats(types.int64, types.int64), codegen


def _scalar_load(result: types.Type, stored: ir.Type, convert: Callable[[ir.IRBuilder, ir.Value], ir.Value]) -> Any:
    return _pure(result, (types.int64,), lambda b, address: convert(b, load(b, address, stored)))


def _scalar_store(kind: types.Type, convert: Callable[[ir.IRBuilder, ir.Value], ir.Value]) -> Any:
    @intrinsic
    def operation(typingctx, address, value):
        def codegen(context, builder, signature, args):
            value = convert(builder, args[1])
            builder.store(value, pointer(builder, args[0], value.type), align=1)
            return context.get_dummy_value()

        return types.void(types.int64, kind), codegen

    return operation


get_i64 = _scalar_load(types.int64, I64, _identity)
get_i32 = _scalar_load(types.int32, I32, _identity)
get_i8 = _scalar_load(types.int32, I8, lambda b, v: b.sext(v, I32))
get_u8 = _scalar_load(types.int32, I8, lambda b, v: b.zext(v, I32))
get_f32 = _scalar_load(types.float32, FLOAT, _identity)
get_f16 = _scalar_load(types.float32, HALF, lambda b, v: b.fpext(v, FLOAT))
put_i64 = _scalar_store(types.int64, _identity)
put_i32 = _scalar_store(types.int32, _identity)
put_i8 = _scalar_store(types.int32, lambda b, v: b.trunc(v, I8))
put_f32 = _scalar_store(types.float32, _identity)
put_f16 = _scalar_store(types.float32, lambda b, v: b.fptrunc(v, HALF))
half_precision = _pure(types.float32, (types.float32,), lambda b, v: b.fpext(b.fptrunc(v, HALF), FLOAT))


@intrinsic
def prefetch(typingctx, address):
    """Ask for the cache line at `address`; never faults."""

    def codegen(context, builder, signature, args):
        where = pointer(builder, args[0], I8)
        call(builder, "llvm.prefetch.p0", ir.VoidType(), [where, *(ir.Constant(I32, v) for v in (0, 2, 1))])
        return context.get_dummy_value()

    return types.void(types.int64), codegen
