"""What emulation of a target measured, kept in a folder's report: the accuracy of the variants of a sweep.

An entry says which machine was emulated by the constants that its numbers depend on, so that a variant with another
converter, or another number of rows, does not take its figure.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.contract.errors import InputError
from toolchain.report import model_report

if TYPE_CHECKING:
    from hw_model.sizing.sweep import Model
    from targets import Target

KEY = "emulated"
_NUMERIC = (  # constants that the numbers of a machine depend on
    "rows", "weight_bits", "input_bits", "bits_per_cycle", "adc_bits", "rows_active", "cache_bits", "density",
    "macro_rows", "macro_columns", "activation_bits", "activation_groups",
)  # fmt: skip


def signature(target: Target) -> dict[str, Any]:
    """What the target's results depend on, but for the model."""
    own = {name: target[name] for name in _NUMERIC if name in target.constants}
    return {"kind": target.kind, "array": target.choices.get("array", ""), **own}


def divergence(model: Model, target: Target) -> float | None:
    """Nats a token of the emulation of this machine in the folder's report; None where there is none."""
    for entry in _entries(Path(model.name)):
        if isinstance(entry, dict) and entry.get("machine") == signature(target) and not entry.get("noise"):
            found = entry.get("kl")
            return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None
    return None


def own_divergence(folder: Path) -> float | None:
    """Nats a token of the folder against its source, as its report has it; None where it was not measured."""
    try:
        quality = model_report.read_report(folder).get("quality") or {}
    except (InputError, OSError):
        return None
    found = quality.get("kl")
    return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None


def _entries(folder: Path) -> list[Any]:
    try:
        found = model_report.read_report(folder).get(KEY)
    except (InputError, OSError):
        return []
    return found if isinstance(found, list) else []


def add_emulated(folder: Path, target: Target, noise: float, kl: float, command: str) -> None:
    """Put what an emulation measured into the folder's report, replacing what it has of the same machine."""
    report = model_report.read_report(folder)
    machine, kept = signature(target), report.get(KEY)
    kept = kept if isinstance(kept, list) else []
    others = [
        entry for entry in kept
        if not (isinstance(entry, dict) and entry.get("machine") == machine and entry.get("noise") == noise)
    ]  # fmt: skip
    entry = {"tag": "measured", "target": target.name, "machine": machine, "noise": noise, "kl": kl, "command": command}
    report[KEY] = [*others, entry]
    model_report.save_report(folder, report)
