"""What is wanted of the compiler: one driver, or the loop, for an instruction set."""

from __future__ import annotations

import re
from dataclasses import dataclass

from runtime_py.machine.isa import Tag

LOOP = "loop.run_steps"
AMX = "+amx"  # behind an instruction set: with tiles


@dataclass(frozen=True, order=True)
class Wanted:
    """An object has one function of nine int64 numbers (engine/loop/loop.py) that returns 0, or else has failed."""

    maker: str  # as steps/makers.py has it, or LOOP
    step: str  # name of the kind of step, "" for the loop
    width: tuple[str, int] | None  # tag of the codes' width, where the step is a product with codes
    isa: str  # name of the instruction set, with AMX behind it where tiles are used

    @property
    def width_tag(self) -> Tag | None:
        return None if self.width is None else Tag(*self.width)

    @property
    def name(self) -> str:
        """For a file's name."""
        width = "" if self.width is None else f"-{self.width[0]}{self.width[1]}"
        return f"{self.maker}{'-' if self.step else ''}{self.step}{width}-{self.isa}"

    @property
    def symbol(self) -> str:
        """Name of the function."""
        return "athena_" + re.sub(r"\W", "_", self.name)
