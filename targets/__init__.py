"""Devices and accelerators as data: one TOML file each, every constant with its unit and source.

A target file has `kind` (the model in hw_model that reads it), `summary`, and a table of constants. A constant is
`{ value, unit, source, tag, low, high }`: tag says measured, published, derived or assumed; low and high are optional.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TAGS = ("measured", "published", "derived", "assumed")
_FOLDER = Path(__file__).parent

# The constants that each kind of model needs, with the unit it expects them in.
KINDS: Mapping[str, Mapping[str, str]] = {
    "cpu": {
        "memory_bandwidth": "byte/s",
        "compute_rate": "op/s",
        "board_power": "W",
    },
    "attentionlego": {
        "clock": "Hz",
        "macro_rows": "1",
        "macro_columns": "1",
        "weight_bits": "bit",
        "projection_cycles": "cycle",
        "score_cycles_per_key": "cycle",
        "ideal_cycles_per_64_keys": "cycle",
        "key_write_cycles": "cycle",
        "softmax_lanes": "1",
        "vector_lanes": "1",
        "bus_width": "bit",
        "mac_energy": "J/op",
        "vector_energy": "J/op",
        "leakage": "W/byte",
        "macro_area": "mm2",
    },
}


class TargetError(ValueError):
    """A target file is wrong or unknown; the message is one line naming the file and the field."""


@dataclass(frozen=True)
class Constant:
    """One number with where it comes from."""

    value: float
    unit: str
    source: str
    tag: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Target:
    """A loaded target file."""

    name: str
    kind: str
    summary: str
    constants: Mapping[str, Constant]
    path: Path

    def __getitem__(self, name: str) -> float:
        return self.constants[name].value


def target_names() -> list[str]:
    """Names of the targets that come with the package."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def load_target(name: str) -> Target:
    """A target by name, or from a user's own .toml file. Raises TargetError when it is unknown or not valid."""
    path = Path(name) if name.endswith(".toml") else _FOLDER / f"{name}.toml"
    if not path.is_file():
        raise TargetError(
            f"target {name!r} is unknown; choose one of {', '.join(target_names())}, or give a .toml file"
        )
    try:
        text = path.read_text(encoding="utf-8")
        data = tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise TargetError(f"{path}: not valid TOML ({error})") from None
    return _validated(path, text, data)


def _validated(path: Path, text: str, data: dict[str, Any]) -> Target:
    def fail(field: str, problem: str) -> TargetError:
        lines = [i for i, line in enumerate(text.splitlines(), 1) if line.strip().startswith((field, f"[{field}"))]
        return TargetError(f"{path}{f', line {lines[0]}' if lines else ''}: {field} {problem}")

    kind = data.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise fail("kind", f"must be one of {', '.join(KINDS)}, not {kind!r}")
    for field in data:
        if field not in ("kind", "summary", "constants"):
            raise fail(field, "is not a known field; kind, summary and constants are")
    constants = data.get("constants")
    if not isinstance(constants, dict):
        raise fail("constants", "is missing")
    units = KINDS[kind]
    for name in units:
        if name not in constants:
            raise fail(name, f"is missing from [constants] (unit {units[name]})")
    loaded = {}
    for name, entry in constants.items():
        if name not in units:
            raise fail(name, f"is not a constant of kind {kind}")
        loaded[name] = _constant(name, entry, units[name], fail)
    return Target(path.stem, kind, str(data.get("summary", "")), loaded, path)


def _constant(name: str, entry: Any, unit: str, fail: Any) -> Constant:
    if not isinstance(entry, dict):
        raise fail(name, "must be a table { value, unit, source, tag }")
    unknown = set(entry) - {"value", "unit", "source", "tag", "low", "high"}
    if unknown:
        raise fail(name, f"has an unknown key {sorted(unknown)[0]!r}")
    if entry.get("unit") != unit:
        raise fail(name, f"must be in {unit}, not {entry.get('unit')!r}")
    if not isinstance(entry.get("source"), str) or not entry["source"].strip():
        raise fail(name, "has no source")
    if entry.get("tag") not in TAGS:
        raise fail(name, f"must have a tag: {', '.join(TAGS)}")
    for key in ("value", "low", "high"):
        number = entry.get(key, 1.0)
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < float("inf"):
            raise fail(name, f"{key} must be a number, 0 or more, not {number!r}")
    if "value" not in entry:
        raise fail(name, "has no value")
    return Constant(**entry)
