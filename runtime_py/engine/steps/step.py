"""What every step of the table has: a head that all kinds share, and the claims that the verifier proves.

A kind of step is a record (records/record.py) with methods that restate what its kernels touch, from its numbers alone:

- `constants`: weights that it reads whatever the tokens; it checks the numbers among its fields on the way;
- `accesses`: what it reads and writes in a kind of call;
- `scratch`: bytes of its own that a thread needs;
- `lookup`: where its indices lie and how many rows they may pick from.

They share nothing with the planner, so that a mistake there is not repeated here; verify/verifier.py holds them against
the memory there is. Kernels load and store without alignment, so none is asked for. Sizes never shrink when tokens
(from 2 on), capacity or numbers of a cache grow. Strides count floats.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from runtime_py.engine.layout.products import HIGH_GROUP, HIGH_TOKEN, MOST_TOKENS
from runtime_py.engine.records.claims import READ, UPDATE, WRITE, Access, Arrays, Case, Constant
from runtime_py.engine.records.errors import need
from runtime_py.engine.records.record import Record, T, dataclass
from runtime_py.machine.widths import GROUP_LOGS

GROUP_SIZES = tuple(1 << log for log in GROUP_LOGS)  # columns that share a scale
_SCRATCH = 8192 + 128  # of a kind that says nothing: quantization of 16 tokens


class Step(Record[T]):
    """Base of all kinds."""

    by_position: ClassVar[bool] = False  # depends on where a token stands: never made for the last token only
    keeps_rows: ClassVar[bool] = False  # made for the last token only, it picks that from the rows it reads

    def constants(self: Any, arrays: Arrays) -> Iterator[Constant]:
        """Weights. Raises Unplannable on numbers that do not fit together."""
        yield from ()

    def accesses(self: Any, case: Case, arrays: Arrays) -> Iterator[Access]:
        """Memory that steps write; the first is what a step that keeps rows reads."""
        raise NotImplementedError

    def scratch(self: Any, arrays: Arrays) -> int:
        """Bytes for each thread."""
        return _SCRATCH

    def lookup(self: Any, arrays: Arrays) -> tuple[int, int] | None:
        """Address of the indices that it looks up, and the rows there are for them."""
        return None


@dataclass(kw_only=True, eq=False)
class Making(Step[T]):
    """A step that makes float32 rows in one piece."""

    out: T


def rows(name: str, kind: int, address: int, stride: int, columns: int, tokens: int) -> Access:
    """float32 [tokens, columns], `stride` floats apart."""
    need(columns >= 1 and stride >= 0, f"{name} has no columns")
    return Access(name, kind, address, 4 * columns, tokens, 4 * stride)


def whole(name: str, address: int, columns: int, tokens: int, accumulate: int = 0) -> Access:
    """A result, float32 [tokens, columns] in one piece."""
    return Access(name, UPDATE if accumulate else WRITE, address, 4 * columns * tokens)


def int8_parts(step: Any, kind: int, columns: int, case: Case) -> Iterator[Access]:
    """`quant`, `sums`, `scales` and `high`: activations as integers (quantize.py). Products load groups of 16 tokens in
    pairs, of which a missing one has no high digits.

    For a step with `group` columns in a group, `starts` and `shares` in place of the sums, or beside them where it
    writes both.
    """
    if case.apart:
        yield from _int8_parts_apart(step, kind, columns)
        return
    tokens = case.tokens
    wide, blocks, groups = -(-columns // 64) * 64, -(-columns // 256), -(-tokens // 16)
    parts = {"quant": wide, "sums": 64 * blocks, "scales": 4 * blocks}
    if tokens > 1:
        parts = {"quant": 16 * wide, "sums": 64 * blocks, "scales": 64 * blocks}
    size = getattr(step, "group", 0)
    if size:
        need(size in GROUP_SIZES, "groups of no known length")
        shared = -(-columns // size)
        parts |= {"starts": wide, "shares": 64 * -(-shared // 16)} if tokens == 1 else {"starts": 64 * shared}
    if not hasattr(step, "sums"):
        parts.pop("sums")
    pair = groups % 2 if kind == READ and tokens > 1 else 0
    for name, size in parts.items():
        yield Access(name, kind, getattr(step, name), size * groups, slack=size * pair)
    high = HIGH_TOKEN * blocks if tokens == 1 else HIGH_GROUP * blocks * (groups + groups % 2)
    yield Access("high", kind, step.high, high)


def _int8_parts_apart(step: Any, kind: int, columns: int) -> Iterator[Access]:
    """The same for single tokens of several texts, as many as there may be (kernels/apart/places.py)."""
    parts = MOST_TOKENS * -(-columns // 256)
    sizes = {"quant": 256 * parts, "sums": 64 * parts, "scales": 4 * parts, "high": HIGH_TOKEN * parts}
    size = getattr(step, "group", 0)
    if size:
        need(size in GROUP_SIZES, "groups of no known length")
        groups = -(-columns // size)
        sizes |= {"starts": 256 * parts, "shares": MOST_TOKENS * 64 * -(-groups // 16)}
    if not hasattr(step, "sums"):
        sizes.pop("sums")
    for name, each in sizes.items():
        yield Access(name, kind, getattr(step, name), each)


def razored_parts(step: Any, kind: int, columns: int, tokens: int) -> Iterator[Access]:
    """`codes`, `sums`, `shifts` and `units`: razored activations (razor.py)."""
    wide, groups = -(-columns // 64) * 64, -(-tokens // 16)
    lanes = wide if tokens == 1 else 64 * groups * -(-columns // step.group)
    yield Access("codes", kind, step.codes, wide if tokens == 1 else 16 * wide * groups)
    yield Access("sums", kind, step.sums, lanes)
    yield Access("shifts", kind, step.shifts, lanes)
    yield Access("units", kind, step.units, 4 * tokens)
