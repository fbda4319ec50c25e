"""Pages of cached keys, in which sparse attention counts what it reads."""

from __future__ import annotations

from dataclasses import dataclass

PAGE = 16  # positions, the keys that lie together in the engine's cache
MOST_PAGES = 1 << 16


@dataclass(frozen=True)
class Pages:
    """What a query reads; all counted in pages of PAGE positions."""

    pages: int
    first: int = 1
    recent: int = 2

    @property
    def keys(self) -> int:
        return PAGE * self.pages
