"""Products of activations and stored matrices."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from runtime_py.engine.layout.products import MAX_ROWS, SCRATCH_BYTES
from runtime_py.engine.records.claims import READ, Access, Arrays, Case, Constant, highest, numbers
from runtime_py.engine.records.errors import need
from runtime_py.engine.records.group_matrix import GroupMatrix
from runtime_py.engine.records.record import NONE, T, dataclass, declared
from runtime_py.engine.records.stored_matrix import StoredMatrix
from runtime_py.engine.steps.integers import RAZOR_GROUPS
from runtime_py.engine.steps.lookups import grouped_matrix
from runtime_py.engine.steps.step import Making, int8_parts, razored_parts, rows, whole


@dataclass(kw_only=True, eq=False)
class Product(Making[T]):
    """out [tokens, rows] = (or, to accumulate, +=) activations times the rows of a matrix, plus bias."""

    rows: T
    bias: T = NONE
    accumulate: T = NONE

    def constants(self: Product[int], arrays: Arrays) -> Iterator[Constant]:
        if self.bias:
            yield Constant("bias", self.bias, 4 * self.rows)

    def result(self: Product[int], case: Case) -> Access:
        return whole("out", self.out, self.rows, case.tokens, self.accumulate)


@dataclass(kw_only=True, eq=False)
class CodeProduct(Product[T]):
    """A product of integers, by the compiled kernel of the matrix's width."""

    matrix: T
    width: T
    row_bytes: T

    def stored(self: CodeProduct[int], arrays: Arrays) -> StoredMatrix[int]:
        """The matrix's record. Raises Unplannable where there is none."""
        return StoredMatrix.at(self.matrix, arrays)

    def constants(self: CodeProduct[int], arrays: Arrays) -> Iterator[Constant]:
        m = self.stored(arrays)
        need(self.width == m.width and self.row_bytes == m.row_bytes, "a width or row that is not the matrix's")
        need(self.rows == m.rows, "rows that are not the matrix's")
        yield from m.constants(1, arrays)
        yield from Product.constants(self, arrays)

    def scratch(self: CodeProduct[int], arrays: Arrays) -> int:
        wide = -(-StoredMatrix.at(self.matrix, arrays).columns // 64) * 64
        return SCRATCH_BYTES + (MAX_ROWS + 1) * wide + 256


@declared
@dataclass(kw_only=True, eq=False)
class MatMul(CodeProduct[T]):
    """Integer activations times a matrix with one codebook along each row."""

    quant: T
    sums: T
    scales: T
    high: T

    def accesses(self: MatMul[int], case: Case, arrays: Arrays) -> Iterator[Access]:
        yield from int8_parts(self, READ, StoredMatrix.at(self.matrix, arrays).columns, case)
        yield self.result(case)


@declared
@dataclass(kw_only=True, eq=False)
class GroupMatMul(CodeProduct[T]):
    """Integer activations times a matrix of group-scaled codes."""

    quant: T
    scales: T
    high: T
    group: T
    starts: T
    shares: T

    def stored(self: GroupMatMul[int], arrays: Arrays) -> GroupMatrix[int]:
        return GroupMatrix.at(self.matrix, arrays)

    def constants(self: GroupMatMul[int], arrays: Arrays) -> Iterator[Constant]:
        need(self.group == self.stored(arrays).group_columns, "sums of other groups than the matrix has")
        yield from CodeProduct.constants(self, arrays)

    def accesses(self: GroupMatMul[int], case: Case, arrays: Arrays) -> Iterator[Access]:
        yield from int8_parts(self, READ, self.stored(arrays).columns, case)
        yield self.result(case)


@declared
@dataclass(kw_only=True, eq=False)
class RazorMatMul(CodeProduct[T]):
    """Razored activations times a matrix of razored codes."""

    codes: T
    sums: T
    shifts: T
    units: T
    flags: T  # of the matrix, two groups a byte
    flag_stride: T  # bytes between rows of flags; 0 where all rows share one
    group: T
    places: T  # flag_places() of kernels/razor_products.py

    def constants(self: RazorMatMul[int], arrays: Arrays) -> Iterator[Constant]:
        yield from CodeProduct.constants(self, arrays)
        need(self.group in RAZOR_GROUPS and self.flag_stride >= 0, "razor groups of another length")
        columns = StoredMatrix.at(self.matrix, arrays).columns
        flags = max((-(-columns // 64) * 64 - 64) // self.group // 2 + 2, (-(-columns // self.group) + 1) // 2)
        yield Constant("flags", self.flags, (self.rows - 1) * self.flag_stride + flags)
        yield Constant("places", self.places, 128)

    def accesses(self: RazorMatMul[int], case: Case, arrays: Arrays) -> Iterator[Access]:
        yield from razored_parts(self, READ, StoredMatrix.at(self.matrix, arrays).columns, case.tokens)
        yield self.result(case)


@declared
@dataclass(kw_only=True, eq=False)
class Grouped(Product[T]):
    """float32 activations times a matrix with several codebooks along each row."""

    source: T
    stride: T
    matrix: T
    groups: T
    group_size: T

    def constants(self: Grouped[int], arrays: Arrays) -> Iterator[Constant]:
        m = grouped_matrix(self.matrix, self.groups, self.group_size, arrays)
        need(self.rows == m.rows, "rows that are not the matrix's")
        yield from m.constants(self.groups, arrays)
        yield from Product.constants(self, arrays)

    def accesses(self: Grouped[int], case: Case, arrays: Arrays) -> Iterator[Access]:
        columns = StoredMatrix.at(self.matrix, arrays).columns
        yield rows("source", READ, self.source, self.stride, columns, case.tokens)
        yield self.result(case)

    def scratch(self: Grouped[int], arrays: Arrays) -> int:
        return 256 + 4 * StoredMatrix.at(self.matrix, arrays).columns


@declared
@dataclass(kw_only=True, eq=False)
class Dense(Product[T]):
    """float32 activations times a float16 or float32 matrix."""

    source: T
    stride: T
    weights: T  # [rows, columns]
    item_bytes: T
    columns: T

    def constants(self: Dense[int], arrays: Arrays) -> Iterator[Constant]:
        need(self.item_bytes in (2, 4) and min(self.columns, self.rows) >= 1, "a matrix of other numbers")
        yield Constant("weights", self.weights, self.item_bytes * self.columns * self.rows)
        yield from Product.constants(self, arrays)

    def accesses(self: Dense[int], case: Case, arrays: Arrays) -> Iterator[Access]:
        yield rows("source", READ, self.source, self.stride, self.columns, case.tokens)
        yield self.result(case)


@declared
@dataclass(kw_only=True, eq=False)
class Sparse(Product[T]):
    """float32 activations times a sparse matrix."""

    source: T
    stride: T
    starts: T  # int64 [rows + 1]: where the entries of a row begin
    columns: T  # int32, of each entry
    weights: T  # float32, of each entry

    def constants(self: Sparse[int], arrays: Arrays) -> Iterator[Constant]:
        need(self.rows >= 1, "a matrix without rows")
        yield Constant("starts", self.starts, 8 * (self.rows + 1))
        starts = numbers(arrays, self.starts, np.int64, self.rows + 1)
        entries = int(starts[-1])
        need(int(starts[0]) >= 0 and bool((starts[1:] >= starts[:-1]).all()), "rows that begin before others end")
        if entries:
            yield Constant("columns", self.columns, 4 * entries)
            yield Constant("weights", self.weights, 4 * entries)
        yield from Product.constants(self, arrays)

    def accesses(self: Sparse[int], case: Case, arrays: Arrays) -> Iterator[Access]:
        entries = int(arrays[self.starts].reshape(-1)[self.rows])
        if entries:
            columns = numbers(arrays, self.columns, np.int32, entries)
            yield rows("source", READ, self.source, self.stride, highest(columns) + 1, case.tokens)
        yield self.result(case)
