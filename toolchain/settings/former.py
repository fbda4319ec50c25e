"""What settings were called before. Scripts and checkpoints of then still say it; nothing else in the project does."""

from __future__ import annotations

from typing import Any

from toolchain.settings.format import ANY_LEVELS, CODEBOOK, MIXED, TRELLIS, VECTORS
from toolchain.settings.preparation import ACTIVATIONS, NONE, RESIDUAL, VALUES
from toolchain.settings.solver import METHOD_FORMATS

# --trellis no|large|all and --vector N (0: automatic) are now --format and --dimension; an unknown name stays as it is.
TRELLIS_FORMATS = {"no": VECTORS, "large": MIXED, "all": TRELLIS}
# --incoherence and --rotate (of activations) are now --rotation.
INCOHERENCE = {NONE: (), VALUES: (VALUES,), RESIDUAL: (RESIDUAL,), "all": (VALUES, RESIDUAL)}
# settings that came later, as all did before
ADDED = {
    "asymmetric": False, "spread": False, "per_layer_bits": 8, "budget_target": None, "budget_context": 1024,
    "levels": ANY_LEVELS, "nested": 0, "columns_apart": False,
    "gradient_sequences": 0, "sparsity": None, "bit_balance": False,
}  # fmt: skip
ADDED_INTEGERS = {"activation_groups": 0}
PRESET_TRELLIS = {"best": "large"}  # what presets said then
PRESET_VECTOR = {"best": 0}


def format_of(method: str, trellis: str, vector: int) -> tuple[str, int]:
    """--format and --dimension for what --trellis and --vector said."""
    if trellis == "no" and vector in (0, 1) and method != "athena":  # which ignored them
        return METHOD_FORMATS.get(method, (CODEBOOK,))[0], 0
    if trellis == "no" and vector == 1:
        return CODEBOOK, 0
    if trellis == "all" and vector == 1:
        return TRELLIS, 0
    return TRELLIS_FORMATS.get(trellis, trellis), vector


def rotation_of(incoherence: str, rotate: bool) -> str:
    """--rotation for what --incoherence and --rotate said."""
    parts = [*INCOHERENCE.get(incoherence, (incoherence,)), *([ACTIVATIONS] if rotate else [])]
    return ",".join(parts) if parts else NONE


def width_of(bits: float) -> dict[str, Any]:
    """bits and budget for what bits said: a fraction was a budget."""
    whole = float(bits).is_integer()
    return {"bits": int(bits) if whole else None, "budget": None if whole else bits}


def modern_settings(found: Any) -> Any:
    """The settings of an athena.json by today's names. What is no settings of then comes back as it is."""
    if not isinstance(found, dict):
        return found
    found = {**ADDED, **found}
    if isinstance(found.get("razor"), dict):
        found["razor"] = {**ADDED_INTEGERS, **found["razor"]}
    if "trellis" not in found:
        return found
    try:
        settings = {**found, "razor": dict(found["razor"])}
        trellis, vector = settings.pop("trellis"), settings.pop("vector")
        form, dimension = format_of(settings["method"], trellis, vector)
        rotation = rotation_of(settings.pop("incoherence"), settings["razor"].pop("rotate"))
        return {**settings, **width_of(settings["bits"]), "format": form, "dimension": dimension, "rotation": rotation}
    except (KeyError, TypeError, ValueError, OverflowError):
        return found
