"""What all packings share: the tensors of one weight, what they are undone to, and the bits of integers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from export.contract.errors import InputError

MAX_BITS = 8
_E2M1 = np.array([s * v for s in (1, -1) for v in (0, 0.5, 1, 1.5, 2, 3, 4, 6)], np.float32)  # 8 is -0
Read = Callable[[str], np.ndarray]


class Header(Protocol):
    """Of a stored tensor."""

    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class Grouped:
    """A matrix [N, K] of codes; columns of a group share a scale and a zero point: scale * (code - zero)."""

    codes: np.ndarray  # uint8 [N, K]
    bits: int
    scale: np.ndarray  # float32 [N, groups]
    zero: np.ndarray | int  # uint8 [N, groups], or one for all
    group_size: int
    groups: np.ndarray | None = None  # int64 [K], the group of each column, where they are not neighbours in order


@dataclass(frozen=True)
class Microscaled:
    """A matrix [N, K] of 4-bit floats (E2M1), 32 neighbours with one power of two."""

    codes: np.ndarray  # uint8 [N, K], 0 to 15
    exponents: np.ndarray  # uint8 [N, K / 32], plus 127

    def weight(self) -> np.ndarray:
        """float32 [N, K], exact."""
        scale = np.ldexp(np.float32(1), self.exponents.astype(np.int32) - 127).astype(np.float32)
        return _E2M1[self.codes] * np.repeat(scale, 32, axis=1)


@dataclass(frozen=True)
class Values:
    """A weight whose codes are of another kind."""

    values: np.ndarray  # float32


class Packing(ABC):
    """One way to store a weight in several tensors, named by what they have after the module's name."""

    TITLE: ClassVar[str]
    FIRST: ClassVar[str]  # the tensor that tells that a weight is stored so
    NEEDED: ClassVar[tuple[str, ...]] = ()  # what must be there, too
    OPTIONAL: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def shape(self, headers: Mapping[str, Header], read: Read) -> tuple[int, ...]:
        """The weight's shape, by the headers of its tensors. Raises InputError where they do not go together.

        read: one of its tensors as unpack() gets it, for small ones.
        """

    @abstractmethod
    def unpack(self, parts: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> Grouped | Microscaled | Values:
        """The weight. parts: integers as stored, floats in float32. Raises InputError for values that cannot be."""


def expect(headers: Mapping[str, Header], kind: str, dtypes: tuple[str, ...], shape: tuple[int, ...]) -> None:
    """Raise InputError unless a tensor, where it is there, has one of these types and this shape."""
    header = headers.get(kind)
    if header is None:
        return
    if header.dtype not in dtypes:
        raise InputError(f"{kind} is of type {header.dtype}, not {' or '.join(dtypes)}")
    if header.shape != shape:
        raise InputError(f"{kind} has shape {list(header.shape)} where {list(shape)} is needed")


def matrix(headers: Mapping[str, Header], kind: str) -> tuple[int, int]:
    """The shape of a tensor that must be a matrix with something in it."""
    shape = headers[kind].shape
    if len(shape) != 2 or 0 in shape:
        raise InputError(f"{kind} has shape {list(shape)}, which is no matrix")
    return shape[0], shape[1]


def small(headers: Mapping[str, Header], kind: str, read: Read, most: int) -> np.ndarray:
    """A tensor's values, in one row, where it has at most so many. Raises InputError where it has more."""
    count = math.prod(headers[kind].shape)
    if not 0 < count <= most:
        raise InputError(f"{kind} has {count} values; 1 to {most} are read")
    return read(kind).reshape(-1)


def size_of_groups(columns: int, groups: int, stated: object) -> int:
    """How many columns share a scale: what the config says where that fits, else equal groups."""
    if type(stated) is int and stated > 0 and -(-columns // stated) == groups:
        return stated
    if columns % groups:
        raise InputError(f"{groups} groups of scales do not fit {columns} columns")
    return columns // groups


def in_order(groups: np.ndarray, size: int, count: int) -> np.ndarray | None:
    """The group of each column, int64 [K]; None where groups are neighbouring columns of this size, in order."""
    if groups.size and (int(groups.min()) < 0 or int(groups.max()) >= count):
        raise InputError(f"g_idx names a group beyond the {count} that there are")
    found = groups.astype(np.int64)
    return None if np.array_equal(found, np.arange(len(found)) // size) else found


def unpacked(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The first `count` codes of each row of int32 [rows, words], uint8 [rows, count].

    Code i begins at bit i * bits of the row, the lowest bit of a word is its first.
    """
    data = np.ascontiguousarray(words).astype("<i4", copy=False).view(np.uint8)
    if MAX_BITS % bits == 0:
        shifts = np.arange(0, MAX_BITS, bits, dtype=np.uint8)
        parts = (data[:, :, None] >> shifts) & np.uint8(2**bits - 1)
        return parts.reshape(len(data), -1)[:, :count]
    found = np.empty((len(data), count), np.uint8)
    for row, stored in enumerate(data):  # a bit takes a byte: row by row
        single = np.unpackbits(stored, bitorder="little")[: count * bits].reshape(count, bits)
        found[row] = np.packbits(single, axis=1, bitorder="little")[:, 0]
    return found
