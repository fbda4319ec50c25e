"""Settings of integer arithmetic: how weights, activations and the key-value cache are razored (QRazor)."""

from __future__ import annotations

from dataclasses import dataclass

from export.contract.errors import InputError
from export.contract.sdr import HALF_EVEN, HALF_UP, SIGN_MAGNITUDE, TWOS_COMPLEMENT, SdrFormat
from export.graph.integers import IntegerArithmetic

TENSOR, TOKEN, HEAD = "tensor", "token", "head"


@dataclass(frozen=True)
class RazorSettings:
    """Widths count the sign. The razored integers have 8 bits for weights and cache, activation_basis for the rest."""

    activation_bits: int = 0  # 2 to 8: razored; 16: integers, not razored; 0: activations stay floating point
    kv: int = 0  # 4 or 8: width of cached keys and values; 0: they stay floating point
    razor_group: int = 16  # neighbours that share a flag: of weights, activations, keys and values
    razor_variant: str = SIGN_MAGNITUDE
    razor_ties: str = HALF_UP
    activation_basis: int = 16  # bits of the integers activations become before they are razored
    activation_unit: str = TENSOR  # calibrated, one for all tokens; "token": from each token's own largest value
    kv_unit: str = TENSOR  # "head": one for each key-value head
    refit: bool = False  # fit the weights' scales again after razoring
    compensate: bool = True  # let later columns make up for the error of earlier ones (inverse Hessian)
    rotate: bool = False  # Hadamard rotation of activations, undone in the weights
    razor_codebook: int = 0  # athena: width that codebook entries are razored to, a codebook a group; 0: they stay int8

    def __post_init__(self) -> None:
        """Raises InputError naming the setting that is out of range."""
        if self.activation_bits not in (0, 2, 3, 4, 5, 6, 7, 8, 16):
            raise InputError(f"--activation-bits must be 2 to 8, 16, or 0 for none, not {self.activation_bits}")
        if self.kv not in (0, 4, 8):
            raise InputError(f"--kv must be 4 or 8, or 0 for none, not {self.kv}")
        if not 1 <= self.razor_group <= 2**16:
            raise InputError(f"--razor-group must be 1 to {2**16}, not {self.razor_group}")
        if self.razor_codebook not in (0, 2, 3, 4, 5, 6, 7):
            raise InputError(f"--razor-codebook must be 2 to 7, or 0 for none, not {self.razor_codebook}")
        choices = {
            "razor_variant": (SIGN_MAGNITUDE, TWOS_COMPLEMENT),
            "razor_ties": (HALF_UP, HALF_EVEN),
            "activation_unit": (TENSOR, TOKEN),
            "kv_unit": (TENSOR, HEAD),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise InputError(
                    f"--{name.replace('_', '-')} must be {' or '.join(allowed)}, not {getattr(self, name)!r}"
                )
        if not min(self.activation_bits, 16) <= self.activation_basis <= 16 or self.activation_basis < 2:
            raise InputError(
                f"activations of {self.activation_bits} bits cannot be razored from {self.activation_basis}"
            )

    def format(self, basis: int, width: int) -> SdrFormat:
        return SdrFormat(basis, width, self.razor_group, self.razor_variant, self.razor_ties)

    def entry_format(self, levels: int) -> SdrFormat:
        """How the `levels` entries of a codebook are razored."""
        return SdrFormat(8, self.razor_codebook or 8, levels, ties=self.razor_ties)

    def arithmetic(self) -> IntegerArithmetic:
        """What the exporter needs to know."""
        activations = self.format(self.activation_basis, self.activation_bits) if self.activation_bits else None
        cache = self.format(8, self.kv) if self.kv else None
        return IntegerArithmetic(activations, self.activation_unit == TOKEN, cache, self.rotate)
