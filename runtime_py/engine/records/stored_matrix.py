"""A stored matrix as the kernels see it: one row of int64 numbers, most of them addresses."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from export.artefacts.graph import Graph, Node
from export.contract.formats.codebook import CodebookLayout
from export.contract.formats.halves import HALF, split
from export.contract.formats.trellis import TrellisLayout
from export.contract.packing import BLOCK_COLUMNS
from runtime_py.engine.records.claims import Arrays, Constant
from runtime_py.engine.records.errors import need
from runtime_py.engine.records.record import Record, T, dataclass, declared
from runtime_py.machine.isa import pick
from runtime_py.machine.widths import TRELLIS_STATE_BITS
from runtime_py.system.guard_pages import settled

# Widths, each of which has a compiled kernel: bits of a code, or one of these (simd/codes.py).
RAW_WIDTH = 9  # 8 bits without lookup
TRELLIS_WIDTH = 16  # plus the bits of a trellis code, with 256 levels
HALVES_WIDTH = 32  # plus the bits of a trellis code, with levels that are sums (export/contract/formats/halves.py)
GROUPS_WIDTH = 1024  # plus the value of a tag of group-scaled codes
_WIDE = ("avx512vbmi",)  # instruction sets that look a byte up in two registers at once


@declared
@dataclass(kw_only=True, eq=False)
class StoredMatrix(Record[T]):
    """Codes [rows, row_bytes], codebooks and scales of a matrix."""

    codes: T
    row_bytes: T
    book: T
    book_bytes: T  # of the codebooks of one row
    book_rows: T  # that share a codebook
    scale: T
    scale_rows: T
    rows: T
    columns: T
    width: T
    blocks: T  # of 256 columns
    tail: T  # columns of the last, shorter block
    bits: T  # of a code as it is stored

    @staticmethod
    def at(address: int, arrays: Arrays) -> StoredMatrix[int]:
        """The record at this address. Raises Unplannable where there is none."""
        return StoredMatrix.of(row_of(address, arrays))

    def constants(self: StoredMatrix[int], groups: int, arrays: Arrays) -> Iterator[Constant]:
        """What the record leads to. groups: codebooks along a row. Raises Unplannable on numbers that do not fit."""
        base = next((base for base in (HALVES_WIDTH, TRELLIS_WIDTH) if self.width > base), 0)
        stored = self.width - base if base else {RAW_WIDTH: 8}.get(self.width, self.width)
        need(min(self.book_rows, self.scale_rows, groups) >= 1, "a matrix of nothing")
        yield from self.code_constants(stored, 4 if base else 8, arrays)
        entries = {HALVES_WIDTH: 2 * HALF, TRELLIS_WIDTH: 1 << TRELLIS_STATE_BITS}.get(base, 1 << self.bits)
        need(self.book_bytes >= groups * entries, "codebooks that are too short")
        yield Constant("codebook", self.book, -(-self.rows // self.book_rows) * self.book_bytes)
        yield Constant("scale", self.scale, -(-self.rows // self.scale_rows) * 4 * groups)

    def code_constants(self: StoredMatrix[int], stored: int, most: int, arrays: Arrays) -> Iterator[Constant]:
        """The codes. stored: their bits by the width, at most `most`. Raises Unplannable on numbers that do not fit."""
        need(min(self.rows, self.columns) >= 1, "a matrix of nothing")
        fits = self.blocks * 256 + self.tail == self.columns and 0 <= self.tail < 256
        need(fits, "a matrix whose blocks are not its columns")
        need(1 <= stored <= most and stored == self.bits, "a width that its codes do not have")
        planes = [plane for plane in (8, 4, 2, 1) if self.bits & plane]
        last_block = sum(-(-self.tail * plane // 8) for plane in planes)
        need(self.row_bytes >= 32 * self.bits * self.blocks + last_block, "rows of codes that are too short")
        yield Constant("codes", self.codes, self.rows * self.row_bytes)


NUMBERS = 24  # of the array that holds a record


def row_of(address: int, arrays: Arrays) -> list[int]:
    """The numbers of the record at this address. Raises Unplannable where there is none."""
    row = arrays.get(address)
    need(row is not None and row.dtype == np.int64 and row.shape == (NUMBERS,), "no matrix record")
    assert row is not None
    numbers: list[int] = row.tolist()
    return numbers


def record_of(matrix: StoredMatrix[int]) -> np.ndarray:
    """The row of a record, int64 [NUMBERS]."""
    record = np.zeros(NUMBERS, np.int64)
    matrix.write(record, lambda place, number: number)
    return record


def looks_up_levels() -> bool:
    """Whether this machine looks 256 levels up faster than two halves, or than it would read 8-bit codes."""
    return pick() in _WIDE


def takes(layout: TrellisLayout, codebook: np.ndarray) -> bool:
    """Whether the kernels read these trellis codes as they are stored, on this machine."""
    if layout.state_bits != TRELLIS_STATE_BITS:
        return False
    return looks_up_levels() or split(codebook, layout.bits) is not None


def runs_directly(node: Node, graph: Graph) -> bool:
    """Whether the kernels take this product's trellis codes as they are stored, on this machine."""
    layout = node.matrix_layout()
    if not isinstance(layout, TrellisLayout):
        return False
    book = graph.weights.get(node.inputs[1 + list(layout.parts()).index("codebook")])
    return book is not None and takes(layout, book)


def matrix_record(
    layout: CodebookLayout | TrellisLayout,
    codes: np.ndarray,
    codebook: np.ndarray,
    scale: np.ndarray,
    halves: bool | None = None,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The record (int64 [NUMBERS]) and the arrays that must stay alive with it. scale must be float32.

    halves: whether trellis levels that are sums are looked up as two halves; None: where this machine does that faster.
    """
    if not (codes.flags.c_contiguous and codebook.flags.c_contiguous and scale.flags.c_contiguous):
        raise ValueError("codes, codebook and scale must be contiguous")
    layout.check(codes, codebook, scale)
    width = _width(layout, codebook)
    if isinstance(layout, TrellisLayout) and (not looks_up_levels() if halves is None else halves):
        found = split(codebook, layout.bits)
        if found is not None:
            codebook, width = np.ascontiguousarray(found), HALVES_WIDTH + layout.bits
    codes, codebook, scale = settled(codes), settled(codebook), settled(scale)
    blocks, tail = divmod(layout.K, BLOCK_COLUMNS)
    matrix = StoredMatrix(
        codes=codes.ctypes.data,
        row_bytes=codes.shape[1],
        book=codebook.ctypes.data,
        book_bytes=codebook[0].nbytes,
        book_rows=layout.rows_per_codebook,
        scale=scale.ctypes.data,
        scale_rows=layout.rows_per_scale,
        rows=layout.N,
        columns=layout.K,
        width=width,
        blocks=blocks,
        tail=tail,
        bits=layout.bits,
    )
    return record_of(matrix), [codes, codebook, scale]


def matrix_width(record: np.ndarray) -> int:
    """The width of a written record."""
    return StoredMatrix.of(record.tolist()).width


def _width(layout: CodebookLayout | TrellisLayout, codebook: np.ndarray) -> int:
    if isinstance(layout, TrellisLayout):
        if layout.state_bits != TRELLIS_STATE_BITS:
            raise ValueError(f"the kernels take trellis codes of {TRELLIS_STATE_BITS} state bits")
        return TRELLIS_WIDTH + layout.bits
    raw = layout.bits == 8 and np.array_equal(codebook, np.broadcast_to(np.arange(-128, 128), codebook.shape))
    return RAW_WIDTH if raw else layout.bits
