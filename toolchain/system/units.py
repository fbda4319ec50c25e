"""Numbers for people: decimal byte units and SI prefixes."""

from __future__ import annotations

import math
import re

_PREFIXES = {"": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9, "k": 1e3}
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]*)?(?:e-?[0-9]{1,3})?) ?([munk]?)(s|J)")


def size_text(count: float) -> str:
    """Bytes for people, in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def figure(value: float | None, places: int) -> str:
    """A figure with this many decimal places, '-' for None; a long one in powers of ten, infinity as inf."""
    if value is None:
        return "-"
    return f"{value:.{places}f}" if abs(value) < 1e9 or not math.isfinite(value) else f"{value:.{places}e}"


def engineering(value: float | None, unit: str) -> str:
    """A figure with an SI prefix, '-' for None."""
    if value is None:
        return "-"
    if not math.isfinite(value):
        return f"{value} {unit}"
    if value == 0:
        return f"0 {unit}"
    power = min(3, max(-15, 3 * math.floor(math.log10(abs(value)) / 3)))
    prefix = {-15: "f", -12: "p", -9: "n", -6: "u", -3: "m", 0: "", 3: "k"}[power]
    return f"{value / 10**power:.3g} {prefix}{unit}"


def quantity(text: str) -> tuple[float, str] | None:
    """Seconds or joules as they are typed, "45ms" or "12 mJ": (value, "s" or "J"). None for anything else."""
    found = _QUANTITY.fullmatch(text.strip())
    if found is None:
        return None
    value = float(found[1]) * _PREFIXES[found[2]]
    return (value, found[3]) if 0 < value < math.inf else None
