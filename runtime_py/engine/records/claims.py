"""What a record claims of memory: kept arrays that it leads to, and bytes that a step reads and writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from runtime_py.engine.records.errors import need

READ, WRITE, UPDATE = range(3)  # an update reads what was there and leaves the same bytes written
Arrays = Mapping[int, np.ndarray]  # kept arrays by address


class Case(NamedTuple):
    """One kind of call: all others touch no more than one of those that are looked at."""

    tokens: int
    last_only: bool
    capacity: int  # positions of the key-value cache, a multiple of 16; those of the call end there at the latest
    item: int  # bytes of a cached number
    threads: int
    apart: bool = False  # single tokens of several texts (loop/apart.py)


class Access(NamedTuple):
    """`rows` rows of `size` bytes, `stride` bytes apart, from `address` on. name: the field it belongs to."""

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


def numbers(arrays: Arrays, address: int, dtype: type, count: int) -> np.ndarray:
    """`count` numbers of the kept array at this address."""
    found = arrays.get(address)
    need(found is not None and found.dtype == dtype and found.size >= count, "numbers of another kind")
    assert found is not None
    return found.reshape(-1)[:count]


def highest(indices: np.ndarray) -> int:
    """The largest of some indices, none of which may be negative; -1 for none."""
    need(indices.size == 0 or int(indices.min()) >= 0, "a negative index")
    return int(indices.max()) if indices.size else -1
