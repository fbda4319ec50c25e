"""Unpacking codes of 1 to 8 bits into vectors and turning them into weights (layout in export/contract/packing.py).

segment(width, address, s): the codes of columns 64s..64s+63 of the full block at `address`, one a byte. Bits above the
code's width are left as they fall; lookups ignore them because their tables repeat.
Trellis codes are unpacked as others; engine/paths.py makes indices of them.
table(isa, width, address): the int8 codebook at `address` plus the instruction set's offset, ready for lookup().
`width` is a tag (isa.py), so every width has its own straight code.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, models, register_model

from export.contract.formats.halves import FOLD, HALF
from export.contract.packing import BLOCK_COLUMNS, planes
from runtime_py.machine.isa import WEIGHT_OFFSET, Tag
from runtime_py.machine.processor import target
from runtime_py.machine.widths import TRELLIS_STATE_BITS
from runtime_py.simd.lowering import emit_lookup16, emit_lookup64, emit_lookup128
from runtime_py.simd.tags import TagType
from runtime_py.simd.vectors import FLOAT, I8, I16, I64, Bytes, call, load, shuffle

_WORDS, _FLOATS = ir.VectorType(I16, 32), ir.VectorType(FLOAT, 16)


def code_bits(width: Tag | TagType) -> int:
    """Bits of a code as it is stored."""
    return int(width.value) & 15


@intrinsic
def bits_of(typingctx, width):
    """code_bits in compiled code: an int64 known when it is compiled."""

    def codegen(context, builder, signature, args):
        return ir.Constant(I64, code_bits(signature.args[0]))

    return types.int64(width), codegen


def _index_bits(width: TagType) -> int:
    """Bits that pick an entry of the codebook; 0 where there is none, or where there are two halves."""
    return {"trellis": TRELLIS_STATE_BITS, "halves": 0, "groups": 0}.get(width.kind, int(width.value))


class TableType(types.Type):
    """A codebook as vectors of 64 entries: one for up to 6 bits, two for 7 and for halves, four for 8."""

    def __init__(self, vectors: int) -> None:
        self.vectors = vectors
        super().__init__(name=f"Table({vectors})")


@register_model(TableType)
class _TableModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, ir.ArrayType(Bytes.llvm, fe_type.vectors))


def shift_words(builder: ir.IRBuilder, value: ir.Value, by: list[int]) -> ir.Value:
    """Shift the 16-bit words of a Bytes vector right (left where negative); what comes from the neighbouring byte is
    not to be relied on: ARM shifts bytes as fast, which brings in zeros, so that there is less to mask.
    """
    if target().architecture == "aarch64":
        kind, by = Bytes.llvm, [s for s in by for _ in range(2)]
    else:
        kind = _WORDS
    found = builder.bitcast(value, kind)
    if any(s > 0 for s in by):
        found = builder.lshr(found, ir.Constant(kind, [max(s, 0) for s in by]))
    if any(s < 0 for s in by):
        found = builder.shl(found, ir.Constant(kind, [max(-s, 0) for s in by]))
    return builder.bitcast(found, Bytes.llvm)


def keep(builder: ir.IRBuilder, value: ir.Value, mask: int) -> ir.Value:
    """The bits of every byte that are set in the mask."""
    return builder.and_(value, ir.Constant(Bytes.llvm, [mask] * 64))


def whole(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """The same Bytes, computed as a whole: LLVM would make each part of it anew where only some bits are read.

    A fence is known for floats only; it is no instruction.
    """
    floats = builder.bitcast(value, _FLOATS)
    return builder.bitcast(call(builder, "llvm.arithmetic.fence.v16f32", _FLOATS, [floats]), Bytes.llvm)


def _emit_segment_3(builder: ir.IRBuilder, address: ir.Value, segment: int) -> ir.Value:
    """Three bits: segments s and s + 2 share one merge, because their fields lie four bits apart in both planes."""
    pair = segment % 2
    high = shift_words(builder, load(builder, address, Bytes.llvm), [2 * pair - 1] * 32)
    half = load(builder, builder.add(address, ir.Constant(I64, 64)), ir.VectorType(I8, 32))
    both = shuffle(builder, half, [i % 32 for i in range(64)])
    low = shift_words(builder, both, [2 * pair] * 16 + [2 * pair + 1] * 16)
    merged = whole(builder, builder.or_(keep(builder, high, 0xEE), keep(builder, low, 0x11)))
    return shift_words(builder, merged, [4] * 32) if segment >= 2 else merged


def _emit_segment(builder: ir.IRBuilder, bits: int, address: ir.Value, segment: int) -> ir.Value:
    if bits == 3:
        return _emit_segment_3(builder, address, segment)
    code, remaining, offset = None, bits, 0
    for plane in planes(bits):
        size = BLOCK_COLUMNS * plane // 8  # bytes of this plane: 256, 128, 64 or 32
        remaining -= plane  # bits below this plane's field
        start = builder.add(address, ir.Constant(I64, offset + (64 * segment) % size))
        field = 64 * segment // size
        if size >= 64:
            loaded, shifts = load(builder, start, Bytes.llvm), [field * plane - remaining] * 32
        else:  # one-bit plane: 32 bytes hold the segment's columns in two neighbouring bits
            half = load(builder, start, ir.VectorType(I8, 32))
            loaded = shuffle(builder, half, [i % 32 for i in range(64)])
            shifts = [2 * segment - remaining] * 16 + [2 * segment + 1 - remaining] * 16
        moved = shift_words(builder, loaded, shifts)
        if len(planes(bits)) > 1:
            mask = ((1 << plane) - 1) << remaining
            if code is None:  # the top plane keeps what lies above it: lookups ignore those bits
                mask = 256 - (1 << remaining)
            moved = keep(builder, moved, mask)
        code = moved if code is None else builder.or_(code, moved)
        offset += size
    return code


@intrinsic(prefer_literal=True)
def segment(typingctx, width, address, number):
    """Codes of 64 columns of a full block (Bytes). number must be a literal 0..3."""
    which = number.literal_value

    def codegen(context, builder, signature, args):
        return _emit_segment(builder, code_bits(signature.args[0]), args[1], which)

    return Bytes(width, types.int64, number), codegen


def _emit_tail_plane(builder: ir.IRBuilder, plane: int, address: ir.Value, tail: int, segment: int) -> ir.Value:
    """Fields of one plane, 64 columns of a last block of `tail` columns, in the low bits of bytes."""
    size = tail * plane // 8  # bytes of the plane
    places = [(64 * segment + column) % size for column in range(64)]
    shifts = [(64 * segment + column) // size * plane for column in range(0, 64, 8)]  # alike within 8 columns
    if size <= 64:
        found = shuffle(builder, load(builder, address, ir.VectorType(I8, size)), places)
    elif places[-1] == places[0] + 63:
        found = load(builder, builder.add(address, ir.Constant(I64, places[0])), Bytes.llvm)
    else:  # from the plane's end on to its start
        half = ir.VectorType(I8, 32)
        first, second = (load(builder, builder.add(address, ir.Constant(I64, places[k])), half) for k in (0, 32))
        found = shuffle(builder, first, list(range(64)), second)
    quads = ir.VectorType(I64, 8)
    moved = builder.lshr(builder.bitcast(found, quads), ir.Constant(quads, shifts)) if any(shifts) else found
    return builder.bitcast(moved, Bytes.llvm)


def _emit_tail(builder: ir.IRBuilder, bits: int, address: ir.Value, tail: int, segment: int) -> ir.Value:
    """Codes of 64 columns of a last block of 64, 128 or 192 columns; bits above a code are those of others."""
    code, offset, widths = None, 0, planes(bits)
    for plane in widths:
        start = builder.add(address, ir.Constant(I64, offset))
        fields = _emit_tail_plane(builder, plane, start, tail, segment)
        if len(widths) > 1:
            fields = keep(builder, fields, (1 << plane) - 1)
        if code is None:
            code = fields
        else:
            code = builder.or_(builder.shl(code, ir.Constant(Bytes.llvm, [plane] * 64)), fields)
        offset += tail * plane // 8
    return code


@intrinsic
def tail_segment(typingctx, width, address, tail, index):
    """Codes of the columns 64 * index.. of a last block of `tail` columns at `address`; tail: 64, 128 or 192."""

    def codegen(context, builder, signature, args):
        bits = code_bits(signature.args[0])
        _, address, tail, index = args
        start, end = builder.block, builder.append_basic_block("codes")
        cases = []
        for columns in (64, 128, 192):
            for segment in range(columns // 64):
                block = builder.append_basic_block("tail")
                with builder.goto_block(block):
                    cases.append((columns + segment, block, _emit_tail(builder, bits, address, columns, segment)))
                    builder.branch(end)
        builder.position_at_end(start)
        choice = builder.switch(builder.add(tail, index), end)
        for number, block, _ in cases:
            choice.add_case(ir.Constant(I64, number), block)
        builder.position_at_end(end)
        found = builder.phi(Bytes.llvm)
        found.add_incoming(ir.Constant(Bytes.llvm, [0] * 64), start)
        for _, block, code in cases:
            found.add_incoming(code, block)
        return found

    return Bytes(width, types.int64, types.int64, types.int64), codegen


def _vectors(width: TagType) -> int:
    return 2 if width.kind == "halves" else max(1, (1 << _index_bits(width)) // 64)


def _emit_table(builder: ir.IRBuilder, isa: str, width: TagType, address: ir.Value) -> ir.Value:
    halves = width.kind == "halves"
    entries = HALF if halves else min(1 << _index_bits(width), 64)
    flip = ir.Constant(Bytes.llvm, [WEIGHT_OFFSET[isa]] * 64)
    kind = ir.ArrayType(Bytes.llvm, _vectors(width))
    out = ir.Constant(kind, ir.Undefined)
    for i in range(kind.count):
        part = load(builder, builder.add(address, ir.Constant(I64, entries * i)), ir.VectorType(I8, entries))
        whole = shuffle(builder, part, [j % entries for j in range(64)])
        if not (halves and i):  # a sum takes the offset once
            whole = builder.xor(whole, flip)
        out = builder.insert_value(out, whole, i)
    return out


@intrinsic
def table(typingctx, isa, width, address):
    """The codebook of 2**width int8 entries at `address` as a lookup table; nothing is read where there is none."""

    def codegen(context, builder, signature, args):
        if signature.args[1].kind == "groups":
            return ir.Constant(ir.ArrayType(Bytes.llvm, 1), ir.Undefined)
        return _emit_table(builder, signature.args[0].value, signature.args[1], args[2])

    return TableType(_vectors(width))(isa, width, types.int64), codegen


def _emit_lookup(builder: ir.IRBuilder, isa: str, bits: int, entries: ir.Value, code: ir.Value) -> ir.Value:
    vectors = [builder.extract_value(entries, i) for i in range(max(1, (1 << bits) // 64))]
    if bits <= 4:
        return emit_lookup16(builder, isa, vectors[0], code)
    if isa == "avx512vbmi" and len(vectors) > 1:
        found, bit = [emit_lookup128(builder, *pair, code) for pair in zip(vectors[::2], vectors[1::2])], 128
    else:
        found, bit = [emit_lookup64(builder, isa, v, code) for v in vectors], 64
    while len(found) > 1:
        chosen = builder.icmp_unsigned("!=", keep(builder, code, bit), ir.Constant(Bytes.llvm, [0] * 64))
        found = [builder.select(chosen, high, low) for low, high in zip(found[::2], found[1::2])]
        bit *= 2
    return found[0]


def _emit_sum(builder: ir.IRBuilder, isa: str, bits: int, entries: ir.Value, state: ir.Value) -> ir.Value:
    folded = state
    if FOLD[bits]:  # what a shift brings into the low half of a byte does not matter
        folded = builder.xor(state, shift_words(builder, state, [-FOLD[bits]] * 32))
    high = shift_words(builder, folded, [4] * 32)
    first, second = (builder.extract_value(entries, i) for i in (0, 1))
    return builder.add(emit_lookup16(builder, isa, first, high), emit_lookup16(builder, isa, second, state))


@intrinsic
def lookup(typingctx, isa, width, entries, code):
    """Weights (Bytes, with the instruction set's offset) of 64 codes; group-scaled ones of under 8 bits have none."""

    def codegen(context, builder, signature, args):
        name, kind = signature.args[0].value, signature.args[1]
        if kind.kind == "groups" and code_bits(kind) < 8:
            return keep(builder, args[3], (1 << code_bits(kind)) - 1)
        if kind.kind in ("raw", "groups"):
            return builder.xor(args[3], ir.Constant(Bytes.llvm, [128 ^ WEIGHT_OFFSET[name]] * 64))
        if kind.kind == "halves":
            return _emit_sum(builder, name, int(kind.value), args[2], args[3])
        return _emit_lookup(builder, name, _index_bits(kind), args[2], args[3])

    return Bytes(isa, width, entries, Bytes), codegen
