"""Devices and accelerators as data: one TOML file each, every constant with its unit and source.

A target file has `kind` (the model in hw_model that reads it), `summary`, `choices` where the kind has any, and a table
of constants. A constant is `{ value, unit, source, tag, low, high }`: tag says measured, published, derived or assumed;
low and high are optional. A value is a number, or names a result of our own gates (gates.py). What a file may leave out
has its value in defaults.toml.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from targets.gates import figure
from targets.toml_file import read_toml

TAGS = ("measured", "published", "derived", "assumed")
_FOLDER = Path(__file__).parent / "devices"
_LARGEST = 1e30  # products of a few constants stay within float64

# The constants that each kind of model needs, with the unit it expects them in.
KINDS: Mapping[str, Mapping[str, str]] = {
    "cpu": {
        "memory_bandwidth": "byte/s",
        "compute_rate": "op/s",
        "board_power": "W",
        "cache_bits": "bit",  # of a cached number in memory
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
        "cell_area": "um2/bit",  # of it, that leaks as memory does
        "logic_leakage": "W/mm2",
        "vector_area": "um2",  # of a lane
        "softmax_area": "um2",
        "bus_area": "mm2/bit",
    },
    "pim": {
        "clock": "Hz",  # highest; the array's own critical path may be slower
        "arrays": "1",  # on the chip; 0: as many as the model needs
        "rows": "1",
        "outputs": "1",  # words an array's row holds
        "weight_bits": "bit",  # held per weight in the array
        "transfer_bits": "bit",  # moved per weight when one is loaded; 0: as many as the file stores
        "input_bits": "bit",
        "bits_per_cycle": "bit",
        "adc_bits": "bit",  # effective; analog arrays only
        "rows_active": "1",  # word lines high at a time, 0: as many as the converter resolves; ones-splitting only
        "ones_density": "1",  # share of ones in an input bit plane; analog and ones-splitting arrays
        "voltage": "V",
        "cell_area": "um2/bit",
        "leakage": "W/byte",  # of everything that stores
        "write_energy": "J/byte",  # into an array
        "write_bandwidth": "byte/s",  # into all arrays together
        "vector_lanes": "1",
        "vector_energy": "J/op",
        "softmax_lanes": "1",
        "softmax_energy": "J/op",  # of one score, from logit to probability
        "requantize_lanes": "1",
        "requantize_energy": "J/op",  # of one output of a product, until it is the next product's input
        "attention_macs": "op/cycle",
        "attention_energy": "J/op",  # of one multiply-accumulate of scores or values
        "cache_bits": "bit",
        "cache_capacity": "byte",  # on chip; what is beyond lies in DRAM
        "sram_energy": "J/byte",
        "sram_area": "mm2/byte",
        "dram_bandwidth": "byte/s",
        "dram_energy": "J/byte",
        "network_bandwidth": "byte/s",
        "network_energy": "J/byte",
        "read_energy": "J/byte",  # of weights from an array whose units stand beside it: sdr only
        "input_toggles": "1",  # share of cycles in which an input bit changes
        "weight_ones": "1",  # share of ones among the bits of weights
        "node": "nm",  # of the arrays' logic; not for sdr, whose units are of 28 nm
        "columns_per_adc": "1",  # bit lines that take turns at one converter
        "logic_leakage": "W/mm2",  # of all that is no memory cell
        "vector_area": "um2",  # of a lane, as the next two
        "softmax_area": "um2",
        "requantize_area": "um2",
        "attention_area": "um2",  # of one product a cycle
        "write_area": "mm2/(byte/s)",
        "network_area": "mm2/(byte/s)",
        "dram_area": "mm2/(byte/s)",  # of the interface
        "dram_idle": "W/(byte/s)",  # of the memory, transfer or not
    },
    "stream": {
        "clock": "Hz",
        "macs": "op/cycle",
        "mac_energy": "J/op",
        "mac_area": "um2",
        "weight_bits": "bit",  # of a stored weight that is not zero; 0: as the file stores it
        "activation_bits": "bit",  # what is computed with (eval --emulate); has no price of its own, as the next
        "activation_groups": "1",  # of channels whose units are powers of two apart
        "density": "1",  # share of weights that are not zero; below 1 a bit mask is stored
        "weight_capacity": "byte",  # on chip, for weights
        "weight_bandwidth": "byte/s",
        "weight_energy": "J/byte",
        "weight_area": "mm2/byte",
        "weight_leakage": "W/byte",
        "buffer_capacity": "byte",  # SRAM for activations and the key-value cache
        "buffer_energy": "J/byte",
        "buffer_area": "mm2/byte",
        "buffer_leakage": "W/byte",
        "vector_lanes": "1",
        "vector_energy": "J/op",
        "cache_bits": "bit",
        "dram_bandwidth": "byte/s",
        "dram_energy": "J/byte",
        "logic_leakage": "W/mm2",
        "vector_area": "um2",  # of a lane
        "port_area": "mm2/(byte/s)",  # of the weight memory
        "dram_area": "mm2/(byte/s)",
        "dram_idle": "W/(byte/s)",
    },
}

# Choices by name that a kind asks for.
CHOICES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "pim": {"array": ("digital", "analog", "ones-splitting", "sdr"), "adc_law": ("survey", "isaac", "pow2")},
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
    choices: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> float:
        return self.constants[name].value

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
                names = ", ".join(sorted([*known, *constants]))
                raise TargetError(f"{self.name}: has no constant {name!r}; it has {names}")
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
    try:
        text, data = read_toml(path)
    except ValueError as error:
        raise TargetError(str(error)) from None
    return _validated(path, text, data)


def _validated(path: Path, text: str, data: dict[str, Any]) -> Target:
    def fail(name: str, problem: str) -> TargetError:
        lines = [i for i, line in enumerate(text.splitlines(), 1) if line.strip().startswith((name, f"[{name}"))]
        return TargetError(f"{path}{f', line {lines[0]}' if lines else ''}: {name} {problem}")

    kind = data.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise fail("kind", f"must be one of {', '.join(KINDS)}, not {kind!r}")
    for name in data:
        if name not in ("kind", "summary", "choices", "constants"):
            raise fail(name, "is not a known field; kind, summary, choices and constants are")
    choices, asked = data.get("choices", {}), CHOICES.get(kind, {})
    if not isinstance(choices, dict) or set(choices) - set(asked):
        raise fail("choices", f"may hold {', '.join(asked) or 'nothing'} for kind {kind}")
    for name, values in asked.items():
        if choices.get(name) not in values:
            raise fail(name, f"must be one of {', '.join(values)} in [choices], not {choices.get(name)!r}")
    constants = data.get("constants")
    if not isinstance(constants, dict):
        raise fail("constants", "is missing")
    units, defaults = KINDS[kind], _defaults()[kind]
    for name in units:
        if name not in constants and name not in defaults:
            raise fail(name, f"is missing from [constants] (unit {units[name]})")
    loaded = {}
    for name, entry in {**defaults, **constants}.items():
        if name not in units:
            raise fail(name, f"is not a constant of kind {kind}")
        loaded[name] = _constant(name, entry, units[name], fail)
    return Target(path.stem, kind, str(data.get("summary", "")), loaded, path, dict(choices))


@cache
def _defaults() -> Mapping[str, Mapping[str, Any]]:
    """By kind, the constants that a file may leave out."""
    return read_toml(Path(__file__).parent / "defaults.toml")[1]


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
    if isinstance(entry.get("value"), str):
        try:
            entry = {**entry, "value": figure(entry["value"])}
        except ValueError as error:
            raise fail(name, f"value must be a number, or a result of our own gates: {error}") from None
    for key in ("value", "low", "high"):
        number = entry.get(key, 1.0)
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= _LARGEST:
            raise fail(name, f"{key} must be a number from 0 to {_LARGEST:g}, not {str(number)[:50]}")
    if "value" not in entry:
        raise fail(name, "has no value")
    return Constant(**entry)
