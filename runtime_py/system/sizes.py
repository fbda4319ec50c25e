"""Amounts of memory as people write them."""

from __future__ import annotations

import re

from export.contract.errors import InputError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?) ?([kmgt]i?)?b?", re.IGNORECASE | re.ASCII)


def parsed_size(text: str, option: str) -> int:
    """Bytes: "6GB", "1.5 GiB", "500MB", "1000000". Raises InputError naming the option, also for less than one byte."""
    found = _SIZE.fullmatch(text.strip())
    size = int(float(found[1]) * _UNITS[(found[2] or "").lower()]) if found else 0
    if not 1 <= size < 2**60:
        raise InputError(f"{option} must be a size such as 6GB or 500MB, not {text[:100]!r}")
    return size
