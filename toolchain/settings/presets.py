"""What --preset and --method set where an option is not given, and how a run's settings come from the options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from toolchain.settings.calibration import BUILT_IN, CalibrationChoice, Workers
from toolchain.settings.format import MIXED
from toolchain.settings.option import Declared, as_text, assembled, check_limits, default_text, option
from toolchain.settings.quantize import QuantizeSettings
from toolchain.settings.solver import KEEP, METHOD_FORMATS

# What a method sets; an option given beside it wins.
METHOD_DEFAULTS: dict[str, dict[str, Any]] = {
    "qrazor": {"bits": 4, "activation_bits": 4},
    KEEP: {"embedding_bits": 16},
}
# What --preset sets; an option given beside it wins.
PRESETS: dict[str, dict[str, Any]] = {
    "fast": {"passes": 1},
    "balanced": {},
    "best": {
        "passes": 8,
        "guided": True,
        "tune_steps": 1000,
        "own_text": 0.5,
        "format": MIXED,
        "equalize": True,
    },
}
OWN_TEXT_OF_BUILT_IN = 1.0  # where a preset asks for own text: the built-in text is hardly the model's domain


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
        defaults = {**PRESETS.get(preset, {}), **METHOD_DEFAULTS.get(method, {})}
        if defaults.get("format") not in METHOD_FORMATS.get(method, ()):
            defaults.pop("format", None)
        if "budget" in given:
            defaults.pop("bits", None)
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
