"""The forward pass that is priced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from toolchain.settings.option import check_limits, option


@dataclass(frozen=True)
class WorkSettings:
    """One forward pass, and what the mapper minimises."""

    PANEL: ClassVar[str] = "Work"

    phase: str = option("decode", "prefill or decode", common=True)
    context: int = option(1024, "Tokens in the context", common=True)
    objective: str = option(
        "latency", "What the mapper minimises: latency, energy, or edp (their product)", common=True
    )

    def __post_init__(self) -> None:
        """Raises InputError on a number that makes no sense."""
        check_limits(self)
