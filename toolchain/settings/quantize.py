"""Settings of a quantization run. Everything here is part of the fingerprint: a changed setting refuses a resume."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from toolchain.settings.calibration import CalibrationSettings
from toolchain.settings.format import DEFAULT_BITS, NESTED, SPARSE_CODES, FormatSettings
from toolchain.settings.option import check_limits
from toolchain.settings.preparation import ACTIVATIONS, PreparationSettings
from toolchain.settings.razor import RazorSettings
from toolchain.settings.solver import KEEP, METHOD_FORMATS, SolverSettings
from toolchain.settings.tuning import TuningSettings

if TYPE_CHECKING:
    from export.graph.integers import IntegerArithmetic


@dataclass(frozen=True)
class QuantizeSettings(FormatSettings, SolverSettings, PreparationSettings, CalibrationSettings, TuningSettings):
    """How the linear layers inside the blocks, and the embedding, are quantized. The fields are in the parts."""

    PANEL: ClassVar[str] = "Quantization"

    razor: RazorSettings = field(default_factory=RazorSettings)  # integer activations and cache

    def __post_init__(self) -> None:
        """Fills in what the method decides. Raises InputError naming the setting that is out of range."""
        from toolchain.settings.rules import check

        check_limits(self)
        decided: dict[str, Any] = {"rotation": self.sorted_rotation(), "budget": self.read_budget(self.budget)}
        if self.format is None:
            own = SPARSE_CODES if self.sparsity is not None else METHOD_FORMATS[self.method][0]
            decided["format"] = NESTED if self.nested else own
        for name, value in decided.items():
            object.__setattr__(self, name, value)  # frozen: nobody has seen the object yet
        if self.bits is None and self.budget is None and self.method != KEEP:
            object.__setattr__(self, "bits", self.fixed_bits or DEFAULT_BITS)
        check(self)

    @property
    def uses_vectors(self) -> bool:
        """Whether one code stands for several weights, as the settings ask (an automatic choice is made later)."""
        return self.dimension > 1 or self.method == "aqlm"

    @property
    def needs_weight_gradients(self) -> bool:
        """Whether outliers are chosen by the gradients of the weights."""
        return self.outliers > 0 and self.outliers_by == "gradient"

    def at_width(self, bits: int, **others: Any) -> QuantizeSettings:
        """These settings for one layer with codes of `bits`, out of a budget."""
        return replace(self, bits=bits, budget=None, budget_target=None, **others)

    def arithmetic(self) -> IntegerArithmetic:
        """What of the model is computed on integers."""
        return self.razor.arithmetic(self.rotates(ACTIVATIONS))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
