"""Products that instructions compute, by which loops are found and their cycles are shared out."""

from __future__ import annotations

import re

# Lanes of one instruction. A widening product of bytes has the arrangement of its result, eight words.
_COUNTS = (
    (re.compile(r"^[su]m(ull|lal)2?\s+v\d+\.8h"), 8),
    (re.compile(r"^[su]dot\s"), 16),
    (re.compile(r"^smmla\s"), 32),
)
_FLOATS = re.compile(r"^fml[as]\s+v\d+\.4s")


def integers(code: list[str]) -> int:
    """Products of bytes."""
    return sum(count for line in code for pattern, count in _COUNTS if pattern.match(line))


def floats(code: list[str]) -> int:
    """Products of float32 numbers."""
    return sum(4 for line in code if _FLOATS.match(line))


def halves(code: list[str]) -> int:
    """float16 numbers that become float32."""
    return sum(4 for line in code if line.startswith("fcvtl"))
