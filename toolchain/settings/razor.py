"""Settings of integer arithmetic: how weights, activations and the key-value cache are razored (QRazor)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from export.contract.errors import InputError
from toolchain.settings.option import check_limits, option

if TYPE_CHECKING:
    from export.contract.sdr import SdrFormat
    from export.graph.integers import IntegerArithmetic

SIGN_MAGNITUDE, TWOS_COMPLEMENT = "sign-magnitude", "twos-complement"  # as export/contract/sdr.py, which needs numpy
HALF_UP, HALF_EVEN = "half-up", "half-even"
TENSOR, TOKEN, HEAD = "tensor", "token", "head"


@dataclass(frozen=True)
class RazorSettings:
    """Widths count the sign. The razored integers have 8 bits for weights and cache, activation_basis for the rest."""

    PANEL: ClassVar[str] = "Integer arithmetic"

    activation_bits: int = option(
        0, "Integer activations: 2 to 8 razored, 16 whole; 0: floating point", choices=(0, *range(2, 9), 16),
        common=True,
    )  # fmt: skip
    activation_groups: int = option(
        0, "Integer activations in so many groups of channels, a power of two apart (Tender); 0: razored",
        low=0, high=16,
    )  # fmt: skip
    kv: int = option(0, "Width of razored keys and values: 4 or 8; 0: floating point", choices=(0, 4, 8), common=True)
    razor_group: int = option(16, "Razored neighbours that share a flag", low=1, high=2**16)
    razor_variant: str = option(SIGN_MAGNITUDE, "Codes", choices=(SIGN_MAGNITUDE, TWOS_COMPLEMENT))
    razor_ties: str = option(HALF_UP, "Rounding of ties", choices=(HALF_UP, HALF_EVEN))
    activation_basis: int = option(16, "Bits of integer activations before they are razored", low=2, high=16)
    activation_unit: str = option(
        TENSOR, "A unit calibrated for the tensor, or by each token's largest value", choices=(TENSOR, TOKEN)
    )
    kv_unit: str = option(TENSOR, "One unit, or one for each key-value head", choices=(TENSOR, HEAD))
    refit: bool = option(False, "qrazor: fit the scales again after razoring")
    compensate: bool = option(True, "qrazor: spread each column's error over later columns")
    razor_codebook: int = option(
        0, "athena: razor codebook entries to 2 to 7 bits; 0: they stay int8", choices=(0, *range(2, 8))
    )

    def __post_init__(self) -> None:
        """Raises InputError naming the setting that is out of range."""
        check_limits(self)
        self._check_groups()
        if min(self.activation_bits, 16) > self.activation_basis:
            raise InputError(
                f"activations of {self.activation_bits} bits cannot be razored from --activation-basis "
                f"{self.activation_basis}"
            )

    def _check_groups(self) -> None:
        if not self.activation_groups:
            return
        if not 2 <= self.activation_bits <= 8:
            raise InputError("--activation-groups takes --activation-bits 2 to 8")
        if self.activation_unit != TENSOR:
            raise InputError(f"--activation-groups has calibrated units: no --activation-unit {self.activation_unit}")

    def format(self, basis: int, width: int) -> SdrFormat:
        from export.contract.sdr import SdrFormat

        return SdrFormat(basis, width, self.razor_group, self.razor_variant, self.razor_ties)

    def entry_format(self, levels: int) -> SdrFormat:
        """How the `levels` entries of a codebook are razored."""
        from export.contract.sdr import SdrFormat

        return SdrFormat(8, self.razor_codebook or 8, levels, ties=self.razor_ties)

    def arithmetic(self, rotate: bool = False) -> IntegerArithmetic:
        """What the exporter needs to know. rotate: activations are rotated before they are quantized."""
        from export.graph.integers import IntegerArithmetic

        activations = self.format(self.activation_basis, self.activation_bits) if self.activation_bits else None
        cache = self.format(8, self.kv) if self.kv else None
        return IntegerArithmetic(activations, self.activation_unit == TOKEN, cache, rotate, self.activation_groups)
