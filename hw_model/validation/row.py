"""One comparison with a published figure, and what the model knew of it before."""

from __future__ import annotations

from dataclasses import dataclass

RE_ADDED, FITTED, HELD_OUT = "re-added", "fitted", "held out"
ORIGINS = (RE_ADDED, FITTED, HELD_OUT)


@dataclass(frozen=True)
class Row:
    """One comparison.

    origin: "re-added", published parts put together again or a rule checked, no constant of a target in it; "fitted",
    a constant of the model was chosen with this row in view; "held out", nothing was. aim: the largest relative error
    that is aimed at. why: the reason of a row that misses, or of one where nothing is compared (modelled is None).
    """

    chip: str
    quantity: str
    unit: str
    published: float
    modelled: float | None
    origin: str
    aim: float = 0.0
    why: str = ""
    system: bool = False  # a whole system, board or chip with its memory

    @property
    def error(self) -> float | None:
        """Relative error of the model."""
        return None if self.modelled is None else self.modelled / self.published - 1

    @property
    def misses(self) -> bool:
        """Whether it is compared, and further off than aimed at."""
        return self.error is not None and abs(self.error) > self.aim
