"""What a sweep varies: `NAME=VALUES` with numbers, units and ranges, of targets and of the work itself."""

from __future__ import annotations

import math

from export.contract.errors import InputError
from targets import ALIASES
from targets.quantities import quantity

OF_THE_WORK = ("context", "phase", "batch", "bits", "target")  # all other names are constants of targets
_MOST = 100_000  # values

Values = tuple[str, ...]


def parse_variation(text: str, option: str = "--vary") -> tuple[str, Values]:
    """`name=a,b,c` or `name=low:high` or `name=low:high:step` (whole numbers by default), units behind each number.

    Names may carry a part's name in front, as in adc.enob: `adc.enob` is adc_bits, `array.rows` is rows.
    Raises InputError on anything else.
    """
    name, equals, values = text.partition("=")
    if not equals or not name.strip() or not values.strip():
        raise InputError(
            f"{option} {text!r}: expected NAME=VALUES, such as adc_bits=3:8 or dram_bandwidth=12.8GB/s,51.2GB/s"
        )
    return ALIASES.get(name.strip(), name.strip()), _values(values.strip(), text)


def parse_changes(texts: tuple[str, ...]) -> dict[str, str]:
    """`name=value` of --set, by name. Raises InputError."""
    found = {}
    for text in texts:
        name, values = parse_variation(text, "--set")
        if len(values) != 1 or ":" in text:
            raise InputError(f"--set {text!r}: expected one value; sweep --vary takes several")
        found[name] = values[0]
    return found


def _values(values: str, text: str) -> Values:
    if ":" not in values:
        return tuple(part.strip() for part in values.split(","))
    parts = [part.strip() for part in values.split(":")]
    unit = parts[0].lstrip("+-0123456789.eE").strip() if len({_unit(part) for part in parts}) == 1 else None
    try:
        if unit is None or not 2 <= len(parts) <= 3:
            raise ValueError
        low, high, *rest = (quantity(part.removesuffix(unit), "1") for part in parts)
        step = rest[0] if rest else 1.0
        if step <= 0 or high < low or (high - low) / step > _MOST:
            raise ValueError
    except ValueError:
        raise InputError(f"--vary {text!r}: a range is LOW:HIGH or LOW:HIGH:STEP, in one unit") from None
    count = math.floor((high - low) / step + 1e-9) + 1
    return tuple(f"{low + i * step:.12g}{unit}" for i in range(count))


def _unit(part: str) -> str:
    return part.lstrip("+-0123456789.eE").strip()
