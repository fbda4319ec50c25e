"""Reading fields of a resolved config.json (toolchain/source/config.py), still untrusted: right type, sane range.

A field that is absent raises KeyError: no family has a default here, its class in transformers has.
"""

from __future__ import annotations

import math
from typing import Any

from export.contract.errors import InputError

_LARGEST = 2**24
# Names of transformers' ACT2FN for the activations that the graph builder knows
_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}


def positive(config: dict[str, Any], name: str) -> int:
    """Field `name` as an integer from 1 to 2**24."""
    value = config[name]
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _LARGEST:
        raise InputError(f"config.json: {name} must be a whole number from 1 to {_LARGEST}, not {value!r}")
    return value


def number(config: dict[str, Any], name: str) -> float:
    """Field `name` as a finite positive float."""
    value = config[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise InputError(f"config.json: {name} must be a positive number, not {value!r}")
    return float(value)


def optional_number(config: dict[str, Any], name: str) -> float | None:
    """Field `name` as a finite positive float or None where it is null."""
    return None if config[name] is None else number(config, name)


def epsilon(config: dict[str, Any], name: str) -> float:
    """Field `name` as the epsilon of a norm: a finite float from 0."""
    return 0.0 if type(config[name]) in (int, float) and config[name] == 0 else number(config, name)


def flag(config: dict[str, Any], name: str) -> bool:
    """Field `name` as true or false."""
    value = config[name]
    if not isinstance(value, bool):
        raise InputError(f"config.json: {name} must be true or false, not {value!r}")
    return value


def activation(config: dict[str, Any], name: str) -> str:
    """Field `name` mapped to one of the activations that the graph builder knows."""
    value = config[name]
    if not isinstance(value, str) or value not in _ACTIVATIONS:
        raise InputError(f"config.json: {name} {value!r} is not supported; supported are {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[value]


def whole_heads(hidden: int, heads: int) -> int:
    """hidden / heads. Raises InputError when it is not a whole number."""
    if hidden % heads:
        raise InputError(f"config.json: hidden_size ({hidden}) must be a multiple of num_attention_heads ({heads})")
    return hidden // heads


def rotated_heads(config: dict[str, Any], hidden: int, heads: int) -> int:
    """hidden / heads where transformers' rotation reads a `head_dim` that its attention does not: both must agree."""
    head_dim = whole_heads(hidden, heads)
    if config.get("head_dim", head_dim) not in (head_dim, None):
        raise InputError(f"config.json: head_dim must be {head_dim} for {config.get('model_type')}")
    return head_dim


def check_chunks(config: dict[str, Any]) -> None:
    """Encoders may run their feed-forward part in chunks: no matter to the values, but a number all the same."""
    if not isinstance(config.get("chunk_size_feed_forward", 0), int | float):
        raise InputError("config.json: chunk_size_feed_forward must be a number")


def check_dropout(config: dict[str, Any], *names: str) -> None:
    """Fields of no matter to the values, but transformers checks them at every use."""
    for name in names:
        if not 0 <= config[name] <= 1:
            raise InputError(f"config.json: {name} must be from 0 to 1, not {config[name]!r}")


def refuse(config: dict[str, Any], unsupported: dict[str, Any]) -> None:
    """Raise InputError when a field has the value that the graph builder has no form for."""
    for name, value in unsupported.items():
        if config.get(name) == value:
            raise InputError(f"config.json: {name} {value!r} is not supported for {config.get('model_type')}")


def window_everywhere(config: dict[str, Any], layers: int) -> tuple[int | None, ...]:
    """Sliding window per layer where all have that of `sliding_window`, or none where it is null."""
    return () if config["sliding_window"] is None else (positive(config, "sliding_window"),) * layers


def windows(config: dict[str, Any], layers: int) -> tuple[int | None, ...]:
    """Sliding window per layer as `layer_types` says, of the width `sliding_window`."""
    types = config["layer_types"]
    if not isinstance(types, list) or len(types) != layers:
        raise InputError(f"config.json: layer_types must list {layers} layers")
    for kind in types:
        if kind not in ("full_attention", "sliding_attention"):
            raise InputError(f"config.json: layer_types {kind!r} is not supported for {config.get('model_type')}")
    if "sliding_attention" not in types:
        return ()
    width = positive(config, "sliding_window")
    return tuple(width if kind == "sliding_attention" else None for kind in types)
