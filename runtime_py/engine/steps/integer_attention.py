"""KV append and attention over caches of integer codes; layout in kernels/attention/integer_cache.py."""

from __future__ import annotations

from collections.abc import Iterator

from runtime_py.engine.records.claims import Arrays, Constant
from runtime_py.engine.records.errors import need
from runtime_py.engine.records.record import NONE, T, dataclass, declared
from runtime_py.engine.steps.attention import Append, Attention, OnCache

_MOST_COLUMNS = 512  # of a head


@dataclass(kw_only=True, eq=False)
class IntegerCache(OnCache[T]):
    """Codes of `bits` bits with a scale for each position and head."""

    bits: T

    def block_bytes(self: IntegerCache[int]) -> tuple[int, int]:
        need(self.bits in (8, 4), "cached codes of another width")
        need(self.head_dim <= _MOST_COLUMNS, "heads whose sums of products 32 bits do not hold")
        size = 16 * -(-self.head_dim // 16) * 16 * self.bits // 8 + 16 * 4
        return size, size


@declared
@dataclass(kw_only=True, eq=False)
class IntegerKvAppend(Append[T], IntegerCache[T]):
    """Threads share out heads, because a byte may hold codes of two tokens."""

    def scratch(self: IntegerKvAppend[int], arrays: Arrays) -> int:
        wide = -(-self.head_dim // 16) * 16
        return wide + 8 * wide  # codes and floats of a head, and the mean of its first keys


@declared
@dataclass(kw_only=True, eq=False)
class IntegerAttend(Attention[T], IntegerCache[T]):
    """A query sees no key behind its own."""

    sinks: T = NONE  # float32 [heads], a score beside those of the keys; 0 for none

    def constants(self: IntegerAttend[int], arrays: Arrays) -> Iterator[Constant]:
        if self.sinks:
            need(self.heads >= 1, "no heads")
            yield Constant("sinks", self.sinks, 4 * self.heads)

    def scratch(self: IntegerAttend[int], arrays: Arrays) -> int:
        wide, rows, keys = -(-self.head_dim // 16) * 16, 8, 256
        digits = 2 * rows * wide + 2 * rows * keys  # of queries, of weights
        return digits + 4 * rows * (keys + wide) + 8 * wide + 6 * 64
