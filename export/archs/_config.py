"""Reading fields of an untrusted config.json: right type, sane range."""

from __future__ import annotations

import math
from typing import Any

from export.errors import InputError

_LARGEST = 2**24


def positive(config: dict[str, Any], name: str, default: int | None = None) -> int:
    """Field `name` as an integer from 1 to 2**24; `default` when it is absent or null."""
    value = config.get(name)
    if value is None:
        if default is None:
            raise KeyError(name)
        value = default
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _LARGEST:
        raise InputError(f"config.json: {name} must be a whole number from 1 to {_LARGEST}, not {value!r}")
    return value


def number(config: dict[str, Any], name: str, default: float) -> float:
    """Field `name` as a finite positive float; `default` when it is absent or null."""
    value = config.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise InputError(f"config.json: {name} must be a positive number, not {value!r}")
    return float(value)


def activation(config: dict[str, Any], name: str, default: str | None = None) -> str:
    """Field `name` mapped to one of the activations that the graph builder knows; `default` when it is absent."""
    known = {
        "silu": "silu",
        "swish": "silu",
        "gelu": "gelu",
        "gelu_new": "gelu_tanh",
        "gelu_pytorch_tanh": "gelu_tanh",
        "gelu_fast": "gelu_tanh",
        "relu": "relu",
    }
    value = config.get(name) or default
    if not isinstance(value, str) or value not in known:
        raise InputError(f"config.json: {name} {value!r} is not supported; supported are {', '.join(known)}")
    return known[value]


def optional_number(config: dict[str, Any], name: str, default: float | None) -> float | None:
    """Field `name` as a finite positive float or None where it is null; `default` when it is absent."""
    value = config.get(name, default)
    return None if value is None else number({name: value}, name, 1.0)


def whole_heads(hidden: int, heads: int) -> int:
    """hidden / heads. Raises InputError when it is not a whole number."""
    if hidden % heads:
        raise InputError(f"config.json: hidden_size ({hidden}) must be a multiple of num_attention_heads ({heads})")
    return hidden // heads


def refuse(config: dict[str, Any], unsupported: dict[str, Any]) -> None:
    """Raise InputError when a field has the value that the graph builder has no form for."""
    for name, value in unsupported.items():
        if config.get(name) == value:
            raise InputError(f"config.json: {name} {value!r} is not supported for {config.get('model_type')}")


def windows(config: dict[str, Any], layers: int, used: bool) -> tuple[int | None, ...]:
    """Sliding window per layer from `sliding_window` and `layer_types` (absent: every layer), when `used`."""
    if not used or config.get("sliding_window") is None:
        return ()
    width = positive(config, "sliding_window")
    types = config.get("layer_types") or ["sliding_attention"] * layers
    if not isinstance(types, list) or len(types) != layers:
        raise InputError(f"config.json: layer_types must list {layers} layers")
    return tuple(width if kind == "sliding_attention" else None for kind in types)
