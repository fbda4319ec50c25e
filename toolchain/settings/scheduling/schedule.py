"""What `schedule` is asked for: two widths, how good an answer has to stay, and how much of a text is looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Optional

from export.contract.errors import InputError
from toolchain.settings.option import check_limits, option


@dataclass(frozen=True)
class ScheduleSettings:
    """Answers are the text itself, behind prompts of the text."""

    PANEL: ClassVar[str] = "Schedule"

    quality: float = option(
        1.02, "Perplexity of an answer, at most so many times that at the wide width", low=1.0, high=100.0, common=True
    )
    wide: Optional[int] = option(
        None, "Width of prompts and of an answer's beginning", low=1, high=8, unset="all there are", common=True
    )
    narrow: Optional[int] = option(
        None, "Width of an answer's end", low=1, high=8, unset="the fewest there are", common=True
    )
    prompt: int = option(64, "Tokens of the longest prompts; others are half and a quarter as long", low=8, high=2**16)
    answer: int = option(192, "Tokens of an answer; it may narrow at once, behind a third, or two", low=6, high=2**16)
    windows: int = option(
        256, "Prompts and answers to learn from, spread over the text", low=20, high=2**16, common=True
    )
    seed: int = option(0, "Random seed", low=0, high=2**63 - 1)

    def __post_init__(self) -> None:
        """Raises InputError on what makes no sense."""
        check_limits(self)
        if self.wide is not None and self.narrow is not None and self.wide <= self.narrow:
            raise InputError(f"--wide {self.wide} must be more than --narrow {self.narrow}")

    @property
    def steps(self) -> tuple[int, ...]:
        """From which an answer may be at the narrow width, rising."""
        return 0, self.answer // 3, 2 * self.answer // 3
