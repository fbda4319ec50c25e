"""Infinity and NaN in a config.json, which JSON has no word for: written as transformers writes them.

Publishers also write the bare words Infinity and NaN, which Python reads and other languages do not.
"""

from __future__ import annotations

import math
from typing import Any

_TAG = "__float__"
_WORDS = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


def as_json(value: Any) -> Any:
    """JSON data whose floats are all finite: others are objects that name them."""
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {_TAG: "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"}
    return value


def from_json(value: Any) -> Any:
    """The same with floats in place of what names them."""
    if isinstance(value, dict):
        named = value.get(_TAG) if len(value) == 1 else None
        return (
            _WORDS[named]
            if isinstance(named, str) and named in _WORDS
            else {key: from_json(item) for key, item in value.items()}
        )
    return [from_json(item) for item in value] if isinstance(value, list) else value
