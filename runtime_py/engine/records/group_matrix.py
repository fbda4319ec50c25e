"""A matrix of group-scaled codes as the kernels see it: a stored matrix without codebooks, and offsets."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from export.contract.formats.groups import MINIMA, ONE_ZERO, ZEROS, GroupsLayout
from export.contract.packing import BLOCK_COLUMNS
from runtime_py.engine.records.claims import Arrays, Constant
from runtime_py.engine.records.errors import Unplannable, need
from runtime_py.engine.records.record import T, dataclass, declared
from runtime_py.engine.records.stored_matrix import GROUPS_WIDTH, StoredMatrix, record_of, row_of
from runtime_py.machine.widths import GROUP_LOGS, group_tag
from runtime_py.system.guard_pages import settled


@declared
@dataclass(kw_only=True, eq=False)
class GroupMatrix(StoredMatrix[T]):
    """`scale` are float16 or float32 [rows, groups] by the width, which also says how many columns a group has."""

    offset: T  # zero points uint8 or minima [rows, groups]; 0 for one zero point
    offset_kind: T  # `offsets` of export/contract/formats/groups.py
    zero: T  # the one zero point

    @staticmethod
    def at(address: int, arrays: Arrays) -> GroupMatrix[int]:
        """The record at this address. Raises Unplannable where there is none."""
        return GroupMatrix.of(row_of(address, arrays))

    @property
    def group_columns(self: GroupMatrix[int]) -> int:
        return 1 << (self.width - GROUPS_WIDTH >> 4 & 15)

    @property
    def groups(self: GroupMatrix[int]) -> int:
        """Scales along a row."""
        return -(-self.columns // self.group_columns)

    @property
    def scale_bytes(self: GroupMatrix[int]) -> int:
        return 4 if self.width - GROUPS_WIDTH >> 8 else 2

    def constants(self: GroupMatrix[int], groups: int, arrays: Arrays) -> Iterator[Constant]:
        """What the record leads to; groups is not looked at. Raises Unplannable on numbers that do not fit."""
        tag = self.width - GROUPS_WIDTH
        need(tag >= 0 and tag >> 9 == 0 and tag >> 4 & 15 in GROUP_LOGS, "a width that is not one of group scales")
        yield from self.code_constants(tag & 15, 8, arrays)
        need(self.book == 0 and self.scale_rows == 1 and self.book_rows == 1, "group scales that rows share")
        scales = self.rows * self.groups
        yield Constant("scale", self.scale, scales * self.scale_bytes)
        need(self.offset_kind in (ONE_ZERO, ZEROS, MINIMA), "offsets of no known kind")
        if self.offset_kind == ONE_ZERO:
            need(0 <= self.zero <= 256 and self.offset == 0, "a zero point that is none")
        else:
            yield Constant("offset", self.offset, scales * (1 if self.offset_kind == ZEROS else self.scale_bytes))


def kernel_group(layout: GroupsLayout) -> int:
    """Columns that share a scale in the kernels: as in the layout, or a part of that which is a power of two.

    Raises Unplannable where there is none of 16 or more.
    """
    size = 256 if layout.groups == 1 else layout.group_size
    fitting = [1 << log for log in GROUP_LOGS if size % (1 << log) == 0]
    if not fitting:
        raise Unplannable(f"groups of {layout.group_size} columns, which are no multiple of {1 << GROUP_LOGS[0]}")
    return max(fitting)


def group_record(
    layout: GroupsLayout, codes: np.ndarray, scale: np.ndarray, offset: np.ndarray
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The record (int64) and the arrays that must stay alive with it. Raises ValueError as check does."""
    layout.check(codes, scale, offset)
    size = kernel_group(layout)
    if layout.offsets == MINIMA and offset.dtype != scale.dtype:
        scale, offset = scale.astype(np.float32), offset.astype(np.float32)
    codes, scale = settled(codes), settled(_by_group(scale, layout, size))
    own = settled(_by_group(offset, layout, size)) if layout.offsets != ONE_ZERO else None
    blocks, tail = divmod(layout.K, BLOCK_COLUMNS)
    tag = group_tag(layout.bits, size.bit_length() - 1, scale.dtype == np.float32)
    matrix = GroupMatrix(
        codes=codes.ctypes.data,
        row_bytes=codes.shape[1],
        book=0,
        book_bytes=0,
        book_rows=1,
        scale=scale.ctypes.data,
        scale_rows=1,
        rows=layout.N,
        columns=layout.K,
        width=GROUPS_WIDTH + int(tag.value),
        blocks=blocks,
        tail=tail,
        bits=layout.bits,
        offset=0 if own is None else own.ctypes.data,
        offset_kind=layout.offsets,
        zero=int(offset[0, 0]) if own is None else 0,
    )
    return record_of(matrix), [array for array in (codes, scale, own) if array is not None]


def _by_group(numbers: np.ndarray, layout: GroupsLayout, size: int) -> np.ndarray:
    """Numbers [N, G] for groups of `size` columns instead of the layout's."""
    groups = -(-layout.K // size)
    if groups == numbers.shape[1]:
        return numbers
    return np.ascontiguousarray(numbers[:, np.arange(groups) * size // layout.group_size])
