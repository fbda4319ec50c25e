"""Numbers for people: decimal byte units and SI prefixes."""

from __future__ import annotations

import math


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
