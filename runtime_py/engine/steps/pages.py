"""Attention over some pages of the cache: the pages' means, the choice of pages, and attention over those."""

from __future__ import annotations

from collections.abc import Iterator

from runtime_py.engine.layout.attention import PAGE
from runtime_py.engine.records.claims import READ, UPDATE, WRITE, Access, Arrays, Case
from runtime_py.engine.records.errors import need
from runtime_py.engine.records.record import REAL, T, dataclass, declared, field
from runtime_py.engine.steps.attention import Attention, PlainCache
from runtime_py.engine.steps.step import whole

_MOST_PAGES = 1 << 16


@dataclass(kw_only=True, eq=False)
class PagedCache(PlainCache[T]):
    """Cached numbers with the mean of each page behind its keys; layout in kernels/attention/pages.py.

    A page is as large as a block.
    """

    def block_bytes(self: PagedCache[int]) -> tuple[int, int]:
        need(self.key_block >= (PAGE + 1) * self.head_dim, "blocks without room for their mean")
        return PlainCache.block_bytes(self)


@dataclass(kw_only=True, eq=False)
class PagesOfTokens(PagedCache[T]):
    """chosen: int32 [tokens, kv_heads, 1 + pages]; unused where a call ends within 16 * pages positions."""

    chosen: T
    pages: T  # most that a token reads

    def lists(self: PagesOfTokens[int], kind: int, case: Case) -> Access:
        need(1 <= self.pages <= _MOST_PAGES, "pages of no known number")
        width = self.kv_heads * (1 + self.pages)
        return Access("chosen", kind, self.chosen, 4 * width * case.tokens)


@declared
@dataclass(kw_only=True, eq=False)
class PageMeans(PagedCache[T]):
    """Write the mean of every page that the call has filled."""

    def accesses(self: PageMeans[int], case: Case, arrays: Arrays) -> Iterator[Access]:
        yield from (access for access in self.cache(UPDATE, case) if access.name == "keys")


@declared
@dataclass(kw_only=True, eq=False)
class ChoosePages(PagesOfTokens[T]):
    """Which pages each token reads with the heads that share keys."""

    first: T  # pages at the beginning that are always read
    recent: T  # pages at the end, with the token's own
    scale: T = field(metadata=REAL)
    scores: T  # float32 [threads, 8, longest]
    longest: T  # positions of the longest cache

    def accesses(self: ChoosePages[int], case: Case, arrays: Arrays) -> Iterator[Access]:
        need(self.first >= 0 and self.recent >= 1 and self.first + self.recent <= self.pages, "pages that do not fit")
        need(self.longest == case.capacity, "scores of another length")
        yield self.queries(READ, case)
        yield from (access for access in self.cache(READ, case) if access.name == "keys")
        yield Access("scores", WRITE, self.scores, 4 * 8 * case.capacity * case.threads)
        yield self.lists(WRITE, case)

    def scratch(self: ChoosePages[int], arrays: Arrays) -> int:
        return 4 * (-(-self.head_dim // 16) * 16) + 4 * 256


@declared
@dataclass(kw_only=True, eq=False)
class SparseAttend(Attention[T], PagesOfTokens[T]):
    """Attention over the chosen pages; dense attention where these are all."""

    def accesses(self: SparseAttend[int], case: Case, arrays: Arrays) -> Iterator[Access]:
        need(self.window == 0, "a window over pages")
        width = self.heads * self.head_dim
        need(self.out_stride == width, "attention into parts of rows")
        yield self.queries(READ, case)
        yield self.lists(READ, case)
        yield from self.cache(READ, case)
        yield whole("out", self.out, width, case.tokens)

    def scratch(self: SparseAttend[int], arrays: Arrays) -> int:
        wide = -(-self.head_dim // 16) * 16
        return 4 * (8 * self.head_dim + 8 * 256 + 8 * wide + 32)
