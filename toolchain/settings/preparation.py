"""What is done to the source's weights before any is quantized; the model computes the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from export.contract.errors import InputError
from toolchain.settings.option import option

VALUES, RESIDUAL, ACTIVATIONS = "values", "residual", "activations"
ROTATIONS = (VALUES, RESIDUAL, ACTIVATIONS)
NONE = "none"


@dataclass(frozen=True)
class PreparationSettings:
    """Rotations and scales that are folded into neighbouring weights, or undone at run time."""

    PANEL: ClassVar[str] = "Preparation"

    # values, residual: folded into weights (source/transforms/rotation.py). activations: at run time, qrazor only.
    # After construction in the order of ROTATIONS.
    rotation: str = option(
        NONE, "Hadamard rotations: none, or some of values, residual, activations (qrazor), comma separated"
    )
    equalize: bool = option(False, "Make columns equally large first")  # toolchain/source/transforms/equalization.py

    def rotates(self, what: str) -> bool:
        """Whether `what`, one of ROTATIONS, is rotated."""
        return what in self.rotation.split(",")

    def sorted_rotation(self) -> str:
        """The field `rotation` in the order of ROTATIONS. Raises InputError for a name that is none of them."""
        asked = [name.strip() for name in self.rotation.split(",")]
        if asked == [NONE]:
            return NONE
        for name in asked:
            if name not in ROTATIONS:
                raise InputError(f"--rotation {name!r} is unknown; choose none, or some of {', '.join(ROTATIONS)}")
        return ",".join(name for name in ROTATIONS if name in asked)
