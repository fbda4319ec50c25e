"""Rotation, KV append and attention, over caches of float16 or float32 numbers and of razored codes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from runtime_py.engine.layout.razor import ROWS as RAZOR_ROWS
from runtime_py.engine.records.claims import READ, UPDATE, WRITE, Access, Arrays, Case, Constant
from runtime_py.engine.records.errors import need
from runtime_py.engine.records.record import NONE, REAL, T, dataclass, declared, field
from runtime_py.engine.steps.step import Making, Step, rows, whole


@dataclass(kw_only=True, eq=False)
class OnCache(Step[T]):
    """A step with queries and a layer's cache."""

    by_position = True

    query: T
    query_stride: T
    keys: T
    values: T
    capacity: T
    heads: T
    kv_heads: T
    head_dim: T

    def queries(self: OnCache[int], kind: int, case: Case) -> Access:
        return rows("query", kind, self.query, self.query_stride, self.heads * self.head_dim, case.tokens)

    def block_bytes(self: Any) -> tuple[int, int]:
        """Bytes of 16 cached keys and of 16 values of one head. Raises Unplannable where there is no such cache."""
        raise NotImplementedError

    def cache(self: OnCache[int], kind: int, case: Case) -> Iterator[Access]:
        """A layer's keys and values."""
        fit = min(self.heads, self.kv_heads, self.head_dim) >= 1 and self.heads % self.kv_heads == 0
        need(fit, "heads that do not fit")
        need(self.capacity == case.capacity and case.capacity % 16 == 0, "a cache of another length")
        blocks, sizes = case.capacity // 16 * self.kv_heads, self.block_bytes()
        if case.apart:  # each token has the cache of its own text, as large, in place of these
            return
        yield Access("keys", kind, self.keys, blocks * sizes[0])
        yield Access("values", kind, self.values, blocks * sizes[1])


@dataclass(kw_only=True, eq=False)
class PlainCache(OnCache[T]):
    """Cached numbers of float16 or float32; layout in kernels/attention/attend.py."""

    key_item: T  # bytes of a cached number
    value_item: T
    key_block: T  # numbers from 16 keys of a head to the next 16

    def block_bytes(self: PlainCache[int]) -> tuple[int, int]:
        need(self.key_item in (2, 4) and self.value_item in (2, 4), "cached numbers of another size")
        need(self.key_block >= 16 * self.head_dim, "blocks that do not hold 16 keys")
        return self.key_item * self.key_block, 256 * self.value_item * -(-self.head_dim // 16)


@dataclass(kw_only=True, eq=False)
class RazorCache(OnCache[T]):
    """Cached codes of 4 bits; layout in kernels/attention/razor_attend.py."""

    key_units: T  # float32 [kv_heads]
    value_units: T
    group: T

    def constants(self: RazorCache[int], arrays: Arrays) -> Iterator[Constant]:
        need(self.kv_heads >= 1, "no heads")
        yield Constant("key_units", self.key_units, 4 * self.kv_heads)
        yield Constant("value_units", self.value_units, 4 * self.kv_heads)

    def block_bytes(self: RazorCache[int]) -> tuple[int, int]:
        dim, group = self.head_dim, self.group
        need(group >= dim or (group >= 16 and group % 16 == 0), "razor groups that do not fit the heads")
        flags = 8 * -(-dim // group)
        return 64 * -(-dim // 8) + flags, 128 * -(-dim // 16) + flags


@dataclass(kw_only=True, eq=False)
class Append(OnCache[T]):
    """Queries and keys are rotated in place, keys and values written into the cache."""

    key: T
    key_stride: T
    value: T
    value_stride: T
    cos: T = NONE  # float32 [positions, half]
    sin: T = NONE
    half: T = NONE  # 0: nothing is rotated

    def accesses(self: Append[int], case: Case, arrays: Arrays) -> Iterator[Access]:
        turned, width = self.half > 0, self.kv_heads * self.head_dim
        need(0 <= 2 * self.half <= self.head_dim, "a rotation that is wider than a head")
        if turned:
            yield Access("cos", READ, self.cos, 4 * self.half * case.capacity)
            yield Access("sin", READ, self.sin, 4 * self.half * case.capacity)
            yield self.queries(UPDATE, case)
        yield rows("key", UPDATE if turned else READ, self.key, self.key_stride, width, case.tokens)
        yield rows("value", READ, self.value, self.value_stride, width, case.tokens)
        yield from self.cache(WRITE, case)


@dataclass(kw_only=True, eq=False)
class Attention(OnCache[T], Making[T]):
    """out = causal attention of the queries over the cache; scores are scaled, and capped softly."""

    window: T  # keys that a query may see, its own the last; 0 for all
    scale: T = field(metadata=REAL)
    softcap: T = field(metadata=REAL)  # 0 for none
    out_stride: T

    def working(self: Any, case: Case) -> Iterator[Access]:
        """Memory that it works in."""
        yield from ()

    def accesses(self: Attention[int], case: Case, arrays: Arrays) -> Iterator[Access]:
        width = self.heads * self.head_dim
        need(self.out_stride == width, "attention into parts of rows")
        yield self.queries(READ, case)
        yield from self.cache(READ, case)
        yield from self.working(case)
        yield whole("out", self.out, width, case.tokens)


@declared
@dataclass(kw_only=True, eq=False)
class Rotate(Making[T]):
    """out = source with each of its heads rotated: neighbouring pairs, or what others than attention read."""

    by_position = True

    source: T
    stride: T
    heads: T
    head_dim: T
    cos: T  # float32 [positions, half]
    sin: T
    half: T
    interleaved: T  # 1: pairs are neighbours, 0: half a rotation apart

    def accesses(self: Rotate[int], case: Case, arrays: Arrays) -> Iterator[Access]:
        need(min(self.heads, self.head_dim) >= 1 and self.interleaved in (0, 1), "a rotation of nothing")
        need(self.half >= 1 and 2 * self.half <= self.head_dim, "a rotation that is wider than a head")
        width = self.heads * self.head_dim
        yield rows("source", READ, self.source, self.stride, width, case.tokens)
        yield Access("cos", READ, self.cos, 4 * self.half * case.capacity)
        yield Access("sin", READ, self.sin, 4 * self.half * case.capacity)
        yield whole("out", self.out, width, case.tokens)


@declared
@dataclass(kw_only=True, eq=False)
class KvAppend(Append[T], PlainCache[T]):
    """overflow: two int64, set where float16 is too narrow for the keys, for the values."""

    overflow: T

    def accesses(self: KvAppend[int], case: Case, arrays: Arrays) -> Iterator[Access]:
        yield from Append.accesses(self, case, arrays)
        yield Access("overflow", UPDATE, self.overflow, 16)


@declared
@dataclass(kw_only=True, eq=False)
class RazorKvAppend(Append[T], RazorCache[T]):
    """The same into a razored cache."""

    form: T

    def scratch(self: RazorKvAppend[int], arrays: Arrays) -> int:
        return self.head_dim + 16 + 4 * -(-self.head_dim // self.group)


@declared
@dataclass(kw_only=True, eq=False)
class Attend(Attention[T], PlainCache[T]):
    """causal 0: a query sees the keys of the call ahead of it, too, as many as the window has."""

    causal: T
    sinks: T = NONE  # float32 [heads], a score beside those of the keys; 0 for none

    def constants(self: Attend[int], arrays: Arrays) -> Iterator[Constant]:
        if self.sinks:
            need(self.heads >= 1, "no heads")
            yield Constant("sinks", self.sinks, 4 * self.heads)

    def scratch(self: Attend[int], arrays: Arrays) -> int:
        wide = -(-self.head_dim // 16) * 16
        return 4 * (8 * self.head_dim + 8 * 256 + 8 * wide + 32)


@declared
@dataclass(kw_only=True, eq=False)
class RazorAttend(Attention[T], RazorCache[T]):
    """The same over a razored cache."""

    scores: T  # float32 [threads, RAZOR_ROWS, capacity]

    def working(self: RazorAttend[int], case: Case) -> Iterator[Access]:
        yield Access("scores", WRITE, self.scores, 4 * RAZOR_ROWS * case.capacity * case.threads)

    def scratch(self: RazorAttend[int], arrays: Arrays) -> int:
        wide = -(-self.head_dim // 16) * 16
        return RAZOR_ROWS * (2 * wide + wide // 4 + 8 + 4 + 48 + 12 * wide)
