"""What `sparsify` is asked for: how many keys a query reads, and on which text the result is looked at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Optional

from export.contract.errors import InputError
from export.contract.pages import MOST_PAGES, PAGE, Pages
from toolchain.settings.option import check_limits, option


@dataclass(frozen=True)
class SparsifySettings:
    """Counted in keys; what is stored are whole pages of 16."""

    PANEL: ClassVar[str] = "Attention"

    keys: int = option(
        1024,
        "Keys that a query reads at most, at any length, in whole pages of 16",
        low=3 * PAGE,
        high=PAGE * MOST_PAGES,
        common=True,
    )
    first_keys: int = option(PAGE, "Of them, those at the beginning of the text", low=0, high=2**16)
    recent_keys: int = option(2 * PAGE, "Of them, those before the query, at least", low=PAGE, high=2**16)
    dense_layers: str = option("", "Layers that go on reading all keys, such as 0,1", unset="none", common=True)

    def __post_init__(self) -> None:
        check_limits(self)
        if self.pages.first + self.pages.recent > self.pages.pages:
            raise InputError(
                f"--keys {self.keys} is less than --first-keys {self.first_keys} and --recent-keys {self.recent_keys}"
            )
        self.dense  # noqa: B018  # refused here rather than in the middle

    @property
    def pages(self) -> Pages:
        keys, first, recent = (-(-n // PAGE) for n in (self.keys, self.first_keys, self.recent_keys))
        return Pages(keys, first, recent)

    @property
    def dense(self) -> tuple[int, ...]:
        """Numbers of layers. Raises InputError on what is none."""
        parts = [part.strip() for part in self.dense_layers.split(",")] if self.dense_layers else []
        if not all(part.isascii() and part.isdigit() and len(part) < 6 for part in parts):
            raise InputError(f"--dense-layers must be numbers of layers such as 0,1, not {self.dense_layers!r}")
        return tuple(sorted({int(part) for part in parts}))


@dataclass(frozen=True)
class LongTextSettings:
    """The text on which dense and sparse attention are compared."""

    PANEL: ClassVar[str] = "Measured"

    text: Optional[Path] = option(None, "Compare on this long UTF-8 text, or .gz of one", unset="not", common=True)
    window: Optional[int] = option(
        None, "Tokens of a window, of which those behind --keys count", low=4 * PAGE, high=2**20,
        unset="four times --keys",
    )  # fmt: skip
    limit: Optional[int] = option(None, "Windows", low=1, high=2**20, common=True, unset="2")

    def __post_init__(self) -> None:
        check_limits(self)
        if self.text is None and (self.window is not None or self.limit is not None):
            raise InputError("--window and --limit go with --text")
