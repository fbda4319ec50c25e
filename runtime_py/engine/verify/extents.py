"""What every step of the table reads and writes: addresses and bytes, from its numbers alone.

A declaration restates what a kernel of the loop touches. It shares nothing with the planner, so that a mistake there
is not repeated here; verifier.py holds the declarations against the memory there is. Kernels load and store without
alignment, so none is asked for. Sizes never shrink when tokens (from 2 on), capacity or numbers of a cache grow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from runtime_py.engine.kernels import matrix
from runtime_py.engine.kernels.matmul import MAX_ROWS, SCRATCH_BYTES
from runtime_py.engine.kernels.razor_attention import ROWS as RAZOR_ROWS
from runtime_py.engine.plan.values import Unplannable
from runtime_py.engine.steps import table as op

READ, WRITE, UPDATE = range(3)  # an update reads what was there and leaves the same bytes written
Arguments = Mapping[str, int]
_RAZOR_GROUPS = (16, 32, 64, 128, 256)


class Case(NamedTuple):
    """One kind of call: all others touch no more than one of those that are looked at."""

    tokens: int
    last_only: bool
    capacity: int  # positions of the key-value cache, a multiple of 16; those of the call end there at the latest
    item: int  # bytes of a cached number
    threads: int


class Access(NamedTuple):
    """`rows` rows of `size` bytes, `stride` bytes apart, from `address` on. name: the argument it belongs to."""

    name: str
    kind: int
    address: int
    size: int
    rows: int = 1
    stride: int = 0
    slack: int = 0  # bytes behind the last row that are loaded, too, and not used


class Constant(NamedTuple):
    """`size` bytes that must be those at the start of a kept array."""

    name: str
    address: int
    size: int


class Matrix(NamedTuple):
    """The numbers of a matrix record (matrix.py), in its order."""

    codes: int
    row_bytes: int
    book: int
    book_bytes: int
    book_rows: int
    scale: int
    scale_rows: int
    rows: int
    columns: int
    width: int
    blocks: int
    tail: int
    places: int
    bits: int


def need(condition: bool, message: str) -> None:
    """Raise Unplannable with the message unless the condition holds."""
    if not condition:
        raise Unplannable(message)


def matrix_at(address: int, arrays: Mapping[int, np.ndarray]) -> Matrix:
    """The record at this address. Raises Unplannable where there is none."""
    record = arrays.get(address)
    need(record is not None and record.dtype == np.int64 and record.shape == (matrix.FIELDS,), "no matrix record")
    assert record is not None
    return Matrix(*record[: len(Matrix._fields)].tolist())


def matrix_constants(m: Matrix, groups: int, arrays: Mapping[int, np.ndarray]) -> Iterator[Constant]:
    """What a record leads to. groups: codebooks along a row."""
    need(min(m.rows, m.columns, m.book_rows, m.scale_rows, groups) >= 1, "a matrix without rows or columns")
    need(m.blocks * 256 + m.tail == m.columns and 0 <= m.tail < 256, "a matrix whose blocks are not its columns")
    trellis = m.width > matrix.TRELLIS_WIDTH
    widths = {matrix.RAW_WIDTH: 8}
    stored = m.width - matrix.TRELLIS_WIDTH if trellis else widths.get(m.width, m.width)
    need(1 <= stored <= (4 if trellis else 8) and stored == m.bits, "a width that its codes do not have")
    planes = [plane for plane in (8, 4, 2, 1) if m.bits & plane]
    last_block = sum(-(-m.tail * plane // 8) for plane in planes)
    need(m.row_bytes >= 32 * m.bits * m.blocks + last_block, "rows of codes that are too short")
    need(m.book_bytes >= groups << (8 if trellis else m.bits), "codebooks that are too short")
    yield Constant("codes", m.codes, m.rows * m.row_bytes)
    yield Constant("codebook", m.book, -(-m.rows // m.book_rows) * m.book_bytes)
    yield Constant("scale", m.scale, -(-m.rows // m.scale_rows) * 4 * groups)
    if m.places:
        numbers = 16 * len(planes) * -(-m.tail // 64)
        yield Constant("places", m.places, 8 * numbers)
        offsets = arrays[m.places][:numbers].reshape(-1, 2, 8)[:, 0]
        need(int(offsets.min()) >= 0 and int(offsets.max()) + 8 <= last_block, "places outside a row of codes")


def constants(operation: int, a: Arguments, arrays: Mapping[int, np.ndarray]) -> Iterator[Constant]:
    """Weights that a step reads, whatever the tokens; checks the numbers among its arguments on the way."""
    if operation in (op.EMBED, op.MATMUL, op.GROUPED, op.RAZOR_MATMUL):
        m = matrix_at(a["matrix"], arrays)
        groups = 1
        if operation in (op.EMBED, op.GROUPED):
            groups = a["groups"]
            need(a["group_size"] >= 1 and (m.columns - 1) // a["group_size"] < groups, "groups that leave a codebook")
            need(m.width <= matrix.RAW_WIDTH, "a width that is not looked up row by row")
        else:
            need(a["width"] == m.width and a["row_bytes"] == m.row_bytes, "a width or row that is not the matrix's")
        if operation == op.EMBED:
            need(a["columns"] == m.columns, "columns that are not the matrix's")
        else:
            need(a["rows"] == m.rows, "rows that are not the matrix's")
        yield from matrix_constants(m, groups, arrays)
        if operation == op.RAZOR_MATMUL:
            need(a["group"] in _RAZOR_GROUPS and a["flag_stride"] >= 0, "razor groups of another length")
            flags = max((-(-m.columns // 64) * 64 - 64) // a["group"] // 2 + 2, (-(-m.columns // a["group"]) + 1) // 2)
            yield Constant("flags", a["flags"], (m.rows - 1) * a["flag_stride"] + flags)
            yield Constant("places", a["places"], 128)
    if operation == op.EMBED_DENSE:
        need(a["item_bytes"] in (2, 4) and a["columns"] >= 1, "a table of other numbers")
        yield Constant("table", a["table"], a["item_bytes"] * a["columns"])
    elif operation == op.NORM:
        need(a["kind"] in (op.RMS, op.LAYER) and min(a["columns"], a["heads"]) >= 1, "a norm of nothing")
        need(a["quant"] == 0 or a["heads"] == 1, "a norm of heads that is quantized")
        yield Constant("scale", a["scale"], 4 * a["columns"])
        if a["bias"]:
            yield Constant("bias", a["bias"], 4 * a["columns"])
    elif operation == op.DENSE:
        need(a["item_bytes"] in (2, 4) and min(a["columns"], a["rows"]) >= 1, "a matrix of other numbers")
        yield Constant("weights", a["weights"], a["item_bytes"] * a["columns"] * a["rows"])
    elif operation == op.SPARSE:
        need(a["rows"] >= 1, "a matrix without rows")
        yield Constant("starts", a["starts"], 8 * (a["rows"] + 1))
        starts = _numbers(arrays, a["starts"], np.int64, a["rows"] + 1)
        entries = int(starts[-1])
        need(int(starts[0]) >= 0 and bool((starts[1:] >= starts[:-1]).all()), "rows that begin before others end")
        if entries:
            yield Constant("columns", a["columns"], 4 * entries)
            yield Constant("weights", a["weights"], 4 * entries)
    elif operation == op.REORDER:
        need(a["columns"] >= 1, "an order of nothing")
        yield Constant("order", a["order"], 8 * a["columns"])
    elif operation in (op.RAZOR_REMEMBER, op.RAZOR_ATTEND):
        need(a["kv_heads"] >= 1, "no heads")
        yield Constant("key_units", a["key_units"], 4 * a["kv_heads"])
        yield Constant("value_units", a["value_units"], 4 * a["kv_heads"])
    if a.get("bias") and operation != op.NORM:
        yield Constant("bias", a["bias"], 4 * a["rows"])


def _numbers(arrays: Mapping[int, np.ndarray], address: int, dtype: type, count: int) -> np.ndarray:
    """`count` numbers of the kept array at this address."""
    found = arrays.get(address)
    need(found is not None and found.dtype == dtype and found.size >= count, "numbers of another kind")
    assert found is not None
    return found.reshape(-1)[:count]


def _highest(numbers: np.ndarray) -> int:
    """The largest of some indices, none of which may be negative; -1 for none."""
    need(numbers.size == 0 or int(numbers.min()) >= 0, "a negative index")
    return int(numbers.max()) if numbers.size else -1


def _rows(name: str, kind: int, a: Arguments, columns: int, tokens: int, field: str = "") -> Access:
    """float32 [tokens, columns], as far apart as the argument NAME_stride (or `field`) says."""
    stride = a[field or f"{name}_stride"]
    need(columns >= 1 and stride >= 0, f"{name} has no columns")
    return Access(name, kind, a[name], 4 * columns, tokens, 4 * stride)


def _out(a: Arguments, columns: int, tokens: int) -> Access:
    return Access("out", UPDATE if a.get("accumulate") else WRITE, a["out"], 4 * columns * tokens)


def _quantized(a: Arguments, kind: int, columns: int, tokens: int) -> Iterator[Access]:
    """The three parts of int8 activations (quantize.py). Products load groups of 16 tokens in pairs."""
    wide, blocks, groups = -(-columns // 64) * 64, -(-columns // 256), -(-tokens // 16)
    parts = {"quant": wide, "sums": 64 * blocks, "scales": 4 * blocks}
    if tokens > 1:
        parts = {"quant": 16 * wide, "sums": 64 * blocks, "scales": 64 * blocks}
    pair = groups % 2 if kind == READ and tokens > 1 else 0
    for name, size in parts.items():
        yield Access(name, kind, a[name], size * groups, slack=size * pair)


def _razored(a: Arguments, kind: int, columns: int, group: int, tokens: int) -> Iterator[Access]:
    """The four parts of razored activations (razor.py)."""
    wide, groups = -(-columns // 64) * 64, -(-tokens // 16)
    lanes = wide if tokens == 1 else 64 * groups * -(-columns // group)
    yield Access("codes", kind, a["codes"], wide if tokens == 1 else 16 * wide * groups)
    yield Access("sums", kind, a["sums"], lanes)
    yield Access("shifts", kind, a["shifts"], lanes)
    yield Access("units", kind, a["units"], 4 * tokens)


def _embed(a: Arguments, case: Case, arrays: Mapping[int, np.ndarray]) -> Iterator[Access]:
    yield Access("ids", READ, a["ids"], 8 * case.tokens)
    yield _out(a, a["columns"], case.tokens)


def _norm(a: Arguments, case: Case, arrays: Mapping[int, np.ndarray]) -> Iterator[Access]:
    yield _rows("source", READ, a, a["columns"] * a["heads"], case.tokens, "stride")
    yield _out(a, a["columns"] * a["heads"], case.tokens)
    if a["quant"]:
        yield from _quantized(a, WRITE, a["columns"], case.tokens)


def _quantize(a: Arguments, case: Case, arrays: Mapping[int, np.ndarray]) -> Iterator[Access]:
    yield _rows("source", READ, a, a["columns"], case.tokens, "stride")
    yield from _quantized(a, WRITE, a["columns"], case.tokens)


def _matmul(a: Arguments, case: Case, arrays: Mapping[int, np.ndarray]) -> Iterator[Access]:
    yield from _quantized(a, READ, matrix_at(a["matrix"], arrays).columns, case.tokens)
    yield _out(a, a["rows"], case.tokens)


def _grouped(a: Arguments, case: Case, arrays: Mapping[int, np.ndarray]) -> Iterator[Access]:
    yield _rows("source", READ, a, matrix_at(a["matrix"], arrays).columns, case.tokens, "stride")
    yield _out(a, a["rows"], case.tokens)


def _dense(a: Arguments, case: Case, arrays: Mapping[int, np.ndarray]) -> Iterator[Access]:
    yield _rows("source", READ, a, a["columns"], case.tokens, "stride")
    yield _out(a, a["rows"], case.tokens)


def _sparse(a: Arguments, case: Case, arrays: Mapping[int, np.ndarray]) -> Iterator[Access]:
    entries = int(arrays[a["starts"]].reshape(-1)[a["rows"]])
    if entries:
        columns = _numbers(arrays, a["columns"], np.int32, entries)
        yield _rows("source", READ, a, _highest(columns) + 1, case.tokens, "stride")
    yield _out(a, a["rows"], case.tokens)


def _activate(a: Arguments, case: Case, arrays: Mapping[int, np.ndarray]) -> Iterator[Access]:
    need(0 <= a["kind"] <= 4, "an unknown activation")
    yield _rows("source", READ, a, a["columns"], case.tokens, "stride")
    if a["gated"]:
        yield _rows("gated", READ, a, a["columns"], case.tokens)
    yield _out(a, a["columns"], case.tokens)
    if a["quant"]:
        yield from _quantized(a, WRITE, a["columns"], case.tokens)


def _scale(a: Arguments, case: Case, arrays: Mapping[int, np.ndarray]) -> Iterator[Access]:
    yield _rows("source", READ, a, a["columns"], case.tokens, "stride")
    yield _out(a, a["columns"], case.tokens)


def _add(a: Arguments, case: Case, arrays: Mapping[int, np.ndarray]) -> Iterator[Access]:
    yield _rows("a", READ, a, a["columns"], case.tokens)
    yield _rows("b", READ, a, a["columns"], case.tokens)
    yield _out(a, a["columns"], case.tokens)


def _reorder(a: Arguments, case: Case, arrays: Mapping[int, np.ndarray]) -> Iterator[Access]:
    order = _numbers(arrays, a["order"], np.int64, a["columns"])
    yield _rows("source", READ, a, _highest(order) + 1, case.tokens, "stride")
    yield _out(a, a["columns"], case.tokens)


def _cache(a: Arguments, kind: int, case: Case) -> Iterator[Access]:
    """A layer's keys and values."""
    dim, blocks = a["head_dim"], case.capacity // 16 * a["kv_heads"]
    need(min(a["heads"], a["kv_heads"], dim) >= 1 and a["heads"] % a["kv_heads"] == 0, "heads that do not fit")
    need(a["capacity"] == case.capacity and case.capacity % 16 == 0, "a cache of another length")
    eights, sixteens = -(-dim // 8), -(-dim // 16)
    if "group" in a:
        group = a["group"]
        need(group >= dim or (group >= 16 and group % 16 == 0), "razor groups that do not fit the heads")
        flags = 8 * -(-dim // group)
        sizes = 64 * eights + flags, 128 * sixteens + flags
    else:
        need(a["key_item"] in (2, 4) and a["value_item"] in (2, 4), "cached numbers of another size")
        sizes = 16 * a["key_item"] * dim, 256 * a["value_item"] * sixteens
    yield Access("keys", kind, a["keys"], blocks * sizes[0])
    yield Access("values", kind, a["values"], blocks * sizes[1])


def _remember(a: Arguments, case: Case, arrays: Mapping[int, np.ndarray]) -> Iterator[Access]:
    turned = a["half"] > 0
    need(0 <= 2 * a["half"] <= a["head_dim"], "a rotation that is wider than a head")
    if turned:
        yield Access("cos", READ, a["cos"], 4 * a["half"] * case.capacity)
        yield Access("sin", READ, a["sin"], 4 * a["half"] * case.capacity)
        yield _rows("query", UPDATE, a, a["heads"] * a["head_dim"], case.tokens)
    yield _rows("key", UPDATE if turned else READ, a, a["kv_heads"] * a["head_dim"], case.tokens)
    yield _rows("value", READ, a, a["kv_heads"] * a["head_dim"], case.tokens)
    yield from _cache(a, WRITE, case)
    if "overflow" in a:
        yield Access("overflow", UPDATE, a["overflow"], 16)


def _attend(a: Arguments, case: Case, arrays: Mapping[int, np.ndarray]) -> Iterator[Access]:
    width = a["heads"] * a["head_dim"]
    need(a["out_stride"] == width, "attention into parts of rows")
    yield _rows("query", READ, a, width, case.tokens)
    yield from _cache(a, READ, case)
    if "scores" in a:
        yield Access("scores", WRITE, a["scores"], 4 * RAZOR_ROWS * case.capacity * case.threads)
    yield _out(a, width, case.tokens)


def _razor(a: Arguments, case: Case, arrays: Mapping[int, np.ndarray]) -> Iterator[Access]:
    need(a["group"] in _RAZOR_GROUPS, "razor groups of another length")
    yield _rows("source", READ, a, a["columns"], case.tokens, "stride")
    yield from _razored(a, WRITE, a["columns"], a["group"], case.tokens)


def _razor_matmul(a: Arguments, case: Case, arrays: Mapping[int, np.ndarray]) -> Iterator[Access]:
    yield from _razored(a, READ, matrix_at(a["matrix"], arrays).columns, a["group"], case.tokens)
    yield _out(a, a["rows"], case.tokens)


ACCESSES: dict[int, Callable[[Arguments, Case, Mapping[int, np.ndarray]], Iterator[Access]]] = {
    op.EMBED: _embed, op.EMBED_DENSE: _embed, op.NORM: _norm, op.QUANTIZE: _quantize, op.MATMUL: _matmul,
    op.GROUPED: _grouped, op.DENSE: _dense, op.SPARSE: _sparse, op.ACTIVATE: _activate, op.SCALE: _scale,
    op.ADD: _add, op.REORDER: _reorder, op.REMEMBER: _remember, op.ATTEND: _attend, op.RAZOR: _razor,
    op.RAZOR_MATMUL: _razor_matmul, op.RAZOR_REMEMBER: _remember, op.RAZOR_ATTEND: _attend,
}  # fmt: skip
BY_POSITION = (op.EMBED, op.EMBED_DENSE, op.REMEMBER, op.ATTEND, op.RAZOR_REMEMBER, op.RAZOR_ATTEND)  # never of one row


def scratch(operation: int, a: Arguments, arrays: Mapping[int, np.ndarray]) -> int:
    """Bytes of its own that a thread needs for a step."""
    if operation in (op.MATMUL, op.RAZOR_MATMUL):
        wide = -(-matrix_at(a["matrix"], arrays).columns // 64) * 64
        return SCRATCH_BYTES + (MAX_ROWS + 1) * wide + 256
    if operation == op.GROUPED:
        return 256 + 4 * matrix_at(a["matrix"], arrays).columns
    if operation == op.ATTEND:
        wide = -(-a["head_dim"] // 16) * 16
        return 4 * (8 * a["head_dim"] + 8 * 256 + 8 * wide + 32)
    if operation == op.RAZOR_REMEMBER:
        return a["head_dim"] + 16 + 4 * -(-a["head_dim"] // a["group"])
    if operation == op.RAZOR_ATTEND:
        wide = -(-a["head_dim"] // 16) * 16
        return RAZOR_ROWS * (2 * wide + wide // 4 + 8 + 4 + 48 + 12 * wide)
    return 4096 + 128
