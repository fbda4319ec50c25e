"""What --preset and --method set where an option is not given, and how a run's settings come from the options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from toolchain.settings.calibration import BUILT_IN, CalibrationChoice, Workers
from toolchain.settings.format import MIXED
from toolchain.settings.option import Declared, as_text, assembled, check_limits, default_text, option
from toolchain.settings.quantize import QuantizeSettings
from toolchain.settings.razor import TOKEN
from toolchain.settings.rules import admits_spread
from toolchain.settings.solver import ABQ, FORMAT_SOLVERS, KEEP, METHOD_FORMATS, PLANNED
from toolchain.settings.tuning import AUTOMATIC, SHORT

# What a method sets; an option given beside it wins.
METHOD_DEFAULTS: dict[str, dict[str, Any]] = {
    "qrazor": {"bits": 4, "activation_bits": 4},
    "tender": {"bits": 4, "activation_bits": 4, "activation_groups": 14},
    "slim": {"bits": 4, "sparsity": "2:4"},
    ABQ: {"bits": 4, "activation_bits": 8, "activation_unit": TOKEN, "block_steps": 40},
    KEEP: {"embedding_bits": 16},
}
# What --preset sets; an option given beside it wins, and what does not go with one that is given stays as it is.
_CAREFUL = {
    "format": MIXED, "asymmetric": True, "spread": True, "damping": 0.05, "columns_apart": True, "sequences": 64,
}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "fast": {"passes": 1},
    "balanced": {
        "passes": 2,
        **_CAREFUL,
        "guided": True,
        "gradient_sequences": PLANNED,
        "tune_steps": SHORT,
        "tune_batch": 4,
    },
    "best": {
        "passes": 4,
        **_CAREFUL,
        "guided": True,
        "tune_steps": AUTOMATIC,
        "tune_batch": 4,
        "own_text": 0.5,
    },
}
OWN_TEXT_OF_BUILT_IN = 1.0  # where a preset asks for own text: the built-in text is hardly the model's domain
_ONLY_ATHENA = ("asymmetric", "spread", "damping", "columns_apart")
# What stores nothing beside its codes, or what is chosen by hand.
_NO_COLUMNS = ("outliers", "nested", "activation_bits", "razor_codebook")
# What takes one code for every weight.
_INTEGERS = ("activation_bits", "razor_codebook")  # whose entries tuning would move
_ONE_CODE = ("group_size", "rank", "activation_bits", "razor_codebook", "nested", "sparsity")


def _suited(defaults: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A preset's values without those that exclude what was given."""
    method, asked = given.get("method", "athena"), {name for name, value in given.items() if value}
    dropped = {name for name in _ONLY_ATHENA if method != "athena"}
    if defaults.get("format") not in METHOD_FORMATS.get(method, ()) or asked.intersection(_ONE_CODE):
        dropped.add("format")
    if "budget" in asked:
        dropped.add("bits")
    if asked.intersection(("budget", "state_bits", "activation_bits", "nested", "sparsity")):
        dropped.add("spread")
    if not admits_spread(method, given.get("format", None if "format" in dropped else defaults.get("format"))):
        dropped.add("spread")
    if given.get("guided_groups", 1) > 1:
        dropped |= {"asymmetric", "columns_apart"}
    if asked.intersection((*_NO_COLUMNS, "budget_target")):
        dropped.add("columns_apart")
    if defaults.get("gradient_sequences") == PLANNED:
        plans = method == "athena" and ("budget" in asked or ("spread" not in dropped and given.get("spread", True)))
        if not plans:  # which would take gradients for nothing else
            dropped |= {"guided", "gradient_sequences"}
        elif "guided" in given:
            dropped.add("gradient_sequences")
    no_training = given.get("format") in FORMAT_SOLVERS or asked.intersection((*_INTEGERS, "sparsity"))
    if method != "athena" or no_training:
        dropped |= {"tune_batch", "tune_steps"} if defaults.get("tune_steps") == SHORT else {"tune_batch"}
    if "tune_steps" in given:
        dropped.add("tune_batch")
    return {name: value for name, value in defaults.items() if name not in dropped}


@dataclass(frozen=True)
class Quantization:
    """What `quantize` and the first half of `export` are asked for."""

    PANEL: ClassVar[str] = "Format"

    preset: str = option(
        "balanced", "Time taken for quality; best adds end-to-end tuning", choices=tuple(PRESETS), common=True
    )
    text: CalibrationChoice = field(default_factory=CalibrationChoice)
    settings: QuantizeSettings = field(default_factory=QuantizeSettings)
    workers: Workers = field(default_factory=Workers)

    def __post_init__(self) -> None:
        """Raises InputError on an unknown preset."""
        check_limits(self)

    @classmethod
    def from_given(cls, given: Mapping[str, Any]) -> Quantization:
        """The preset's and the method's values where an option was not given. Raises InputError naming an option."""
        preset, method = given.get("preset", "balanced"), given.get("method", "athena")
        defaults = _suited({**PRESETS.get(preset, {}), **METHOD_DEFAULTS.get(method, {})}, given)
        if method == ABQ and (bits := given.get("activation_bits", defaults["activation_bits"])):
            defaults["activation_basis"] = bits  # whole integers: nothing is razored
        text: CalibrationChoice = assembled(CalibrationChoice, given)
        if "own_text" in defaults and text.source == BUILT_IN:
            defaults["own_text"] = OWN_TEXT_OF_BUILT_IN
        settings = assembled(QuantizeSettings, {**defaults, **given})
        return cls(preset, text, settings, assembled(Workers, given))

    @staticmethod
    def default_text(one: Declared) -> str:
        """The default, and where --preset or --method set another one."""
        others = [
            f"{chosen} {as_text(values[one.name])}"
            for chosen, values in (*PRESETS.items(), *METHOD_DEFAULTS.items())
            if one.name in values
        ]
        own = [f"of the built-in text {as_text(OWN_TEXT_OF_BUILT_IN)}"] if one.name == "own_text" else []
        plain = default_text(one) or ("no" if others else "")
        return "; ".join([plain, *([", ".join([*others, *own])] if others else [])]) if plain else ""
