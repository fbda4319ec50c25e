"""The machine that a target becomes: its constants, its area, its size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from export.contract.errors import InputError
from targets.quantities import quantity
from toolchain.settings.option import check_limits, option

OWN, KNEE = "own", "knee"
_LARGEST = 1e7  # mm2, a hundred wafers


@dataclass(frozen=True)
class MachineSettings:
    """What is changed of the targets."""

    PANEL: ClassVar[str] = "Machine"

    set: tuple[str, ...] = option(
        (), "A constant of the targets, such as dram_bandwidth=51.2GB/s or chips=4; repeatable", unset="as they are",
        common=True,
    )  # fmt: skip
    area: str = option(
        "", "As many arrays, macros or multipliers as fit, such as 800mm2", unset="as the target says", common=True
    )
    size: str = option(
        OWN,
        "knee: as few arrays, macros or multipliers as come within 1 % of the best",
        choices=(OWN, KNEE),
        common=True,
    )

    def __post_init__(self) -> None:
        """Raises InputError on a number that makes no sense."""
        check_limits(self)
        _ = self.square_millimetres

    @property
    def square_millimetres(self) -> float | None:
        """The area, None for the target's own. Raises InputError on what is no area."""
        if not self.area:
            return None
        try:
            found = quantity(self.area, "mm2")
        except ValueError as error:
            raise InputError(f"--area: {error}") from None
        if not 0 < found <= _LARGEST:
            raise InputError(f"--area must be more than 0 and at most {_LARGEST:g} mm2, not {self.area!r}")
        return found
