"""Lookups: rows of stored matrices and tables, columns in another order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from runtime_py.engine.records.claims import READ, Access, Arrays, Case, Constant, highest, numbers
from runtime_py.engine.records.errors import need
from runtime_py.engine.records.group_matrix import GroupMatrix
from runtime_py.engine.records.record import T, dataclass, declared
from runtime_py.engine.records.stored_matrix import RAW_WIDTH, StoredMatrix
from runtime_py.engine.steps.step import Making, rows, whole


@declared
@dataclass(kw_only=True, eq=False)
class Embed(Making[T]):
    """out[t] = row ids[t] of a stored matrix, as float32."""

    by_position = True

    ids: T  # int64 [tokens]
    matrix: T
    groups: T  # codebooks along a row
    group_size: T  # columns that share one
    columns: T

    def constants(self: Embed[int], arrays: Arrays) -> Iterator[Constant]:
        m = grouped_matrix(self.matrix, self.groups, self.group_size, arrays)
        need(self.columns == m.columns, "columns that are not the matrix's")
        yield from m.constants(self.groups, arrays)

    def accesses(self: Embed[int], case: Case, arrays: Arrays) -> Iterator[Access]:
        yield Access("ids", READ, self.ids, 8 * case.tokens)
        yield whole("out", self.out, self.columns, case.tokens)

    def lookup(self: Embed[int], arrays: Arrays) -> tuple[int, int]:
        return self.ids, StoredMatrix.at(self.matrix, arrays).rows


@declared
@dataclass(kw_only=True, eq=False)
class EmbedGroups(Making[T]):
    """out[t] = row ids[t] of a matrix of group-scaled codes, as float32."""

    by_position = True

    ids: T  # int64 [tokens]
    matrix: T
    group: T  # columns of a group
    scale_bytes: T  # of one scale
    columns: T

    def constants(self: EmbedGroups[int], arrays: Arrays) -> Iterator[Constant]:
        m = GroupMatrix.at(self.matrix, arrays)
        need(self.columns == m.columns, "columns that are not the matrix's")
        yield from m.constants(1, arrays)
        own = self.group == m.group_columns and self.scale_bytes == m.scale_bytes
        need(own, "groups that are not the matrix's")

    def accesses(self: EmbedGroups[int], case: Case, arrays: Arrays) -> Iterator[Access]:
        yield Access("ids", READ, self.ids, 8 * case.tokens)
        yield whole("out", self.out, self.columns, case.tokens)

    def lookup(self: EmbedGroups[int], arrays: Arrays) -> tuple[int, int]:
        return self.ids, GroupMatrix.at(self.matrix, arrays).rows


@declared
@dataclass(kw_only=True, eq=False)
class EmbedDense(Making[T]):
    """out[t] = row ids[t] of a float16 or float32 table."""

    by_position = True

    ids: T  # int64 [tokens]
    table: T
    item_bytes: T
    columns: T

    def constants(self: EmbedDense[int], arrays: Arrays) -> Iterator[Constant]:
        need(self.item_bytes in (2, 4) and self.columns >= 1, "a table of other numbers")
        yield Constant("table", self.table, self.item_bytes * self.columns)

    def accesses(self: EmbedDense[int], case: Case, arrays: Arrays) -> Iterator[Access]:
        yield Access("ids", READ, self.ids, 8 * case.tokens)
        yield whole("out", self.out, self.columns, case.tokens)

    def lookup(self: EmbedDense[int], arrays: Arrays) -> tuple[int, int]:
        return self.ids, arrays[self.table].nbytes // (self.item_bytes * self.columns)


@declared
@dataclass(kw_only=True, eq=False)
class Reorder(Making[T]):
    """out[t, i] = source[t, order[i]]."""

    source: T
    stride: T
    order: T  # int64 [columns]
    columns: T

    def constants(self: Reorder[int], arrays: Arrays) -> Iterator[Constant]:
        need(self.columns >= 1, "an order of nothing")
        yield Constant("order", self.order, 8 * self.columns)

    def accesses(self: Reorder[int], case: Case, arrays: Arrays) -> Iterator[Access]:
        order = numbers(arrays, self.order, np.int64, self.columns)
        yield rows("source", READ, self.source, self.stride, highest(order) + 1, case.tokens)
        yield whole("out", self.out, self.columns, case.tokens)


def grouped_matrix(address: int, groups: int, group_size: int, arrays: Arrays) -> StoredMatrix[int]:
    """A matrix that is looked up row by row, `group_size` columns from each of `groups` codebooks."""
    m = StoredMatrix.at(address, arrays)
    need(group_size >= 1 and (m.columns - 1) // group_size < groups, "groups that leave a codebook")
    need(m.width <= RAW_WIDTH, "a width that is not looked up row by row")
    return m
