"""Devices and accelerators as data: one TOML file each, every constant with its unit and source.

A target file has `kind` (the model in hw_model that reads it), `summary`, `choices` where the kind has any, and a table
of constants. A constant is `{ value, unit, source, tag, low, high }`: tag says measured, published, derived or assumed;
low and high are optional. A value is a number, or names a result of our own gates (gates.py). What a file may leave out
has its value in defaults.toml. With `base = "rap"` a file states only what differs from that target, or from a file
beside it (`base = "mine.toml"`); a constant that the base has may leave out its unit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from targets.bounds import problem
from targets.gates import figure
from targets.kinds import CHOICES, KINDS, UNPAID
from targets.quantities import quantity
from targets.toml_file import read_toml

TAGS = ("measured", "published", "derived", "assumed")
ALIASES = {  # a part's name in front reads better in a sweep
    "adc.enob": "adc_bits", "adc.bits": "adc_bits", "adc.law": "adc_law", "array.rows": "rows",
    "array.outputs": "outputs", "array.count": "arrays", "array.kind": "array", "dram.bandwidth": "dram_bandwidth",
    "cache.bits": "cache_bits",
}  # fmt: skip
_FOLDER = Path(__file__).parent / "devices"
_LARGEST = 1e30  # products of a few constants stay within float64
_DEEPEST = 8  # files, each the base of the one before

__all__ = ["ALIASES", "CHOICES", "KINDS", "TAGS", "Constant", "Target", "TargetError", "load_target", "target_names"]


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
    choices: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> float:
        return self.constants[name].value

    def read(self, name: str, text: str) -> float | str:
        """What `text` states for a constant or choice, units converted (quantities.py). Raises TargetError."""
        if name in CHOICES.get(self.kind, {}):
            return text.strip()
        if name not in self.constants:
            raise TargetError(f"{self.name}: has no constant {name!r}; it has {self._names()}")
        try:
            value = quantity(text, self.constants[name].unit)
        except ValueError as error:
            raise TargetError(f"{self.name}: {name}: {error}") from None
        if wrong := problem(self.kind, name, self.constants[name].unit, value):
            raise TargetError(f"{self.name}: {name} {wrong}")
        if name in UNPAID and self._beyond(name, value):
            end = f"{self._best(name):g} {self.constants[name].unit}"
            raise TargetError(
                f"{self.name}: {name}={text} is better than {end}, the end of its range, and no part would pay for it; "
                "a target file may state it with its source"
            )
        return value

    def _best(self, name: str) -> float:
        """The better end of the range of a constant in UNPAID."""
        constant = self.constants[name]
        end = constant.high if UNPAID[name] == "high" else constant.low
        return constant.value if end is None else end

    def _beyond(self, name: str, value: float) -> bool:
        return value > self._best(name) if UNPAID[name] == "high" else value < self._best(name)

    def with_changes(self, changes: Mapping[str, str]) -> Target:
        """The same target with other values, as `read` reads them, and a name that says so. Raises TargetError."""
        if not changes:
            return self
        changed = self.varied({name: self.read(name, text) for name, text in changes.items()})
        return replace(changed, name=f"{self.name} ({', '.join(f'{n}={t.strip()}' for n, t in changes.items())})")

    def _names(self) -> str:
        return ", ".join(sorted([*CHOICES.get(self.kind, {}), *self.constants]))

    def varied(self, values: Mapping[str, float | str]) -> Target:
        """The same target with other values. Raises TargetError on a name it does not have, or a value out of range."""
        constants, choices = dict(self.constants), dict(self.choices)
        for name, value in values.items():
            known = CHOICES.get(self.kind, {})
            if name in known:
                if value not in known[name]:
                    raise TargetError(f"{self.name}: {name} must be one of {', '.join(known[name])}, not {value!r}")
                choices[name] = str(value)
            elif name not in constants:
                raise TargetError(f"{self.name}: has no constant {name!r}; it has {self._names()}")
            elif isinstance(value, str) or not 0 <= value <= _LARGEST:
                raise TargetError(f"{self.name}: {name} must be a number from 0 to {_LARGEST:g}, not {value!r}")
            else:
                constants[name] = replace(constants[name], value=float(value), low=None, high=None)
        return replace(self, constants=constants, choices=choices)


def target_names() -> list[str]:
    """Names of the targets that come with the package."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def load_target(name: str) -> Target:
    """A target by name, or from a user's own .toml file. Raises TargetError when it is unknown or not valid."""
    path = Path(name) if name.endswith(".toml") else _FOLDER / f"{name}.toml"
    if not path.exists():
        raise TargetError(
            f"target {name!r} is unknown; choose one of {', '.join(target_names())}, or give a .toml file"
        )
    return _loaded(path, _DEEPEST)


def _loaded(path: Path, depth: int) -> Target:
    try:
        text, data = read_toml(path)
    except ValueError as error:
        raise TargetError(str(error)) from None
    return _validated(path, text, data, depth)


def _base(path: Path, name: Any, depth: int, fail: Any) -> Target | None:
    """The target that a file's `base` names: one of the package, or a file beside it."""
    if name is None:
        return None
    if not isinstance(name, str) or not (name in target_names() or (name.endswith(".toml") and "/" not in name)):
        raise fail("base", f"must be one of {', '.join(target_names())}, or a .toml file beside this, not {name!r}")
    if depth <= 1:
        raise fail("base", f"goes through more than {_DEEPEST} files, or in a circle")
    found = path.parent / name if name.endswith(".toml") else _FOLDER / f"{name}.toml"
    return _loaded(found, depth - 1)


def _validated(path: Path, text: str, data: dict[str, Any], depth: int) -> Target:
    def fail(name: str, problem: str) -> TargetError:
        lines = [i for i, line in enumerate(text.splitlines(), 1) if line.strip().startswith((name, f"[{name}"))]
        return TargetError(f"{path}{f', line {lines[0]}' if lines else ''}: {name} {problem}")

    for name in data:
        if name not in ("base", "kind", "summary", "choices", "constants"):
            raise fail(name, "is not a known field; base, kind, summary, choices and constants are")
    base = _base(path, data.get("base"), depth, fail)
    kind = data.get("kind", base.kind if base else None)
    if not isinstance(kind, str) or kind not in KINDS:
        raise fail("kind", f"must be one of {', '.join(KINDS)}, not {kind!r}")
    if base and kind != base.kind:
        raise fail("kind", f"must be {base.kind}, as that of its base {base.name}, or left out")
    choices, asked = data.get("choices", {}), CHOICES.get(kind, {})
    if not isinstance(choices, dict) or set(choices) - set(asked):
        raise fail("choices", f"may hold {', '.join(asked) or 'nothing'} for kind {kind}")
    choices = {**(base.choices if base else {}), **choices}
    for name, values in asked.items():
        if choices.get(name) not in values:
            raise fail(name, f"must be one of {', '.join(values)} in [choices], not {choices.get(name)!r}")
    constants = data.get("constants", {} if base else None)
    if not isinstance(constants, dict):
        raise fail("constants", "is missing")
    units, defaults = KINDS[kind], {} if base else _defaults()[kind]
    for name in units:
        if name not in constants and name not in defaults and base is None:
            raise fail(name, f"is missing from [constants] (unit {units[name]})")
    loaded = dict(base.constants) if base else {}
    for name, entry in {**defaults, **constants}.items():
        if name not in units:
            raise fail(name, f"is not a constant of kind {kind}")
        if base and isinstance(entry, dict):
            entry = {"unit": units[name], **entry}
        loaded[name] = _constant(kind, name, entry, units[name], fail)
    return Target(path.stem, kind, str(data.get("summary", "")), loaded, path, choices)


@cache
def _defaults() -> Mapping[str, Mapping[str, Any]]:
    """By kind, the constants that a file may leave out."""
    return read_toml(Path(__file__).parent / "defaults.toml")[1]


def _constant(kind: str, name: str, entry: Any, unit: str, fail: Any) -> Constant:
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
    if isinstance(entry.get("value"), str):
        try:
            entry = {**entry, "value": figure(entry["value"])}
        except ValueError as error:
            raise fail(name, f"value must be a number, or a result of our own gates: {error}") from None
    for key in ("value", "low", "high"):
        number = entry.get(key, 1.0)
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= _LARGEST:
            raise fail(name, f"{key} must be a number from 0 to {_LARGEST:g}, not {str(number)[:50]}")
        if key in entry and (wrong := problem(kind, name, unit, number)):
            raise fail(name, f"{key} {wrong}")
    if "value" not in entry:
        raise fail(name, "has no value")
    if not entry.get("low", entry["value"]) <= entry["value"] <= entry.get("high", entry["value"]):
        raise fail(
            name, f"low {entry.get('low', '-')} and high {entry.get('high', '-')} do not enclose {entry['value']}"
        )
    return Constant(**entry)
