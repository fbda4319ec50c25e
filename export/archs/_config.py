"""Reading fields of an untrusted config.json: right type, sane range, and the rotary variants."""

from __future__ import annotations

import math
from typing import Any

from export.errors import InputError
from export.spec import Rope

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


def activation(config: dict[str, Any], name: str) -> str:
    """Field `name` mapped to one of the activations that the graph builder knows."""
    known = {
        "silu": "silu",
        "swish": "silu",
        "gelu": "gelu",
        "gelu_new": "gelu_tanh",
        "gelu_pytorch_tanh": "gelu_tanh",
        "gelu_fast": "gelu_tanh",
        "relu": "relu",
    }
    value = config.get(name)
    if not isinstance(value, str) or value not in known:
        raise InputError(f"config.json: {name} {value!r} is not supported; supported are {', '.join(known)}")
    return known[value]


def rope(config: dict[str, Any], head_dim: int) -> Rope:
    """Rotary settings from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before).

    Variants: default, linear, llama3. Frequencies follow transformers' modeling_rope_utils.
    """
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(parameters, dict):
        raise InputError(f"config.json: rope_parameters must be an object, not {parameters!r}")
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    theta = number(parameters, "rope_theta", number(config, "rope_theta", 10000.0))
    if head_dim % 2:
        raise InputError(f"config.json: head_dim must be even for rotary positions, not {head_dim}")
    frequencies = [theta ** (-2 * i / head_dim) for i in range(head_dim // 2)]
    if kind == "linear":
        factor = number(parameters, "factor", 1.0)
        frequencies = [f / factor for f in frequencies]
    elif kind == "llama3":
        frequencies = [_llama3_frequency(f, parameters) for f in frequencies]
    elif kind != "default":
        raise InputError(f"config.json: rope_type {kind!r} is not supported; supported are default, linear, llama3")
    return Rope(tuple(frequencies))


def _llama3_frequency(frequency: float, parameters: dict[str, Any]) -> float:
    """Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, a linear blend in between."""
    factor = number(parameters, "factor", 8.0)
    low, high = number(parameters, "low_freq_factor", 1.0), number(parameters, "high_freq_factor", 4.0)
    original = number(parameters, "original_max_position_embeddings", 8192)
    wavelength = 2 * math.pi / frequency
    if wavelength < original / high:
        return frequency
    if wavelength > original / low:
        return frequency / factor
    blend = (original / wavelength - low) / (high - low)
    return (1 - blend) * frequency / factor + blend * frequency


def windows(config: dict[str, Any], layers: int, used: bool) -> tuple[int | None, ...]:
    """Sliding window per layer from `sliding_window` and `layer_types` (absent: every layer), when `used`."""
    if not used or config.get("sliding_window") is None:
        return ()
    width = positive(config, "sliding_window")
    types = config.get("layer_types") or ["sliding_attention"] * layers
    if not isinstance(types, list) or len(types) != layers:
        raise InputError(f"config.json: layer_types must list {layers} layers")
    return tuple(width if kind == "sliding_attention" else None for kind in types)
