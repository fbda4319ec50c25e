"""Rotary position embeddings as a resolved config.json has them: the variants of transformers' modeling_rope_utils.

transformers brings every spelling to one form, `rope_parameters`, when the config is resolved; only that is read here.
"""

from __future__ import annotations

import math
from typing import Any

from export.contract.errors import InputError
from export.graph.archs._config import number, positive
from export.graph.spec import Rope

_ORIGINAL = "original_max_position_embeddings"


def rope_settings(config: dict[str, Any]) -> dict[str, Any]:
    """`rope_parameters` as it stands."""
    found = config["rope_parameters"]
    if not isinstance(found, dict):
        raise InputError(f"config.json: rope_parameters must be an object, not {found!r}")
    return found


def of_layer_type(config: dict[str, Any], kind: str) -> dict[str, Any]:
    """The config as if every layer rotated as those of this type, as far as transformers reads it."""
    settings = {name: value for name, value in rope_settings(config)[kind].items() if name != "truncate"}
    return {**config, "rope_parameters": settings}


def rope(config: dict[str, Any], head_dim: int, partial: bool = False) -> Rope:
    """Frequencies of the rotated channels and the factor on cos and sin.

    partial: the family can rotate a part of each head; the others ignore `partial_rotary_factor` where no scaling
    reads it. Kinds: default;
    linear; dynamic (within the context it was trained for, which is all that is exported, it is the default one);
    yarn (arXiv 2309.00071); longrope (arXiv 2402.13753) with its short factors, which reach to
    `original_max_position_embeddings`; llama3; proportional, which turns the first pairs of a whole head alone.
    """
    settings = rope_settings(config)
    kind, theta = settings["rope_type"], number(settings, "rope_theta")
    if kind == "proportional":
        return _proportional(settings, theta, head_dim)
    whole = kind == "default" and not partial
    part = number({"partial_rotary_factor": 1.0, **settings}, "partial_rotary_factor") if not whole else 1.0
    width = int(head_dim * part)
    if part > 1 or width < 2 or width % 2:
        raise InputError(f"config.json: rotary positions need an even part of head_dim, not {part:g} x {head_dim}")
    if width != head_dim and not partial:
        raise InputError(f"config.json: partial_rotary_factor is not supported for {config.get('model_type')}")
    frequencies = [theta ** (-2 * i / width) for i in range(width // 2)]
    if kind in ("default", "dynamic"):
        return Rope(tuple(frequencies))
    if kind == "linear":
        factor = number(settings, "factor")
        return Rope(tuple(f / factor for f in frequencies))
    if kind == "llama3":
        return Rope(tuple(_llama3_frequency(f, settings) for f in frequencies))
    if kind == "yarn":
        return _yarn(config, settings, theta, frequencies)
    if kind == "longrope":
        return _longrope(config, settings, frequencies)
    kinds = "default, linear, dynamic, yarn, longrope, llama3, proportional"
    raise InputError(f"config.json: rope_type {kind!r} is not supported; supported are {kinds}")


def exported_context(config: dict[str, Any]) -> int:
    """Positions that the exported rotation is right for: with longrope those of its short factors."""
    context = positive(config, "max_position_embeddings")
    settings = rope_settings(config)
    return min(context, int(number(settings, _ORIGINAL))) if settings.get("rope_type") == "longrope" else context


def _proportional(settings: dict[str, Any], theta: float, head_dim: int) -> Rope:
    """All pairs of a head, the slowest of them at a standstill: their frequencies are 0."""
    part = number({"partial_rotary_factor": 1.0, **settings}, "partial_rotary_factor")
    factor, turning = number({"factor": 1.0, **settings}, "factor"), int(part * head_dim // 2)
    if head_dim % 2 or not 1 <= turning <= head_dim // 2:
        raise InputError(f"config.json: rotary positions need an even part of head_dim, not {part:g} x {head_dim}")
    frequencies = [theta ** (-2 * i / head_dim) / factor for i in range(turning)]
    return Rope((*frequencies, *[0.0] * (head_dim // 2 - turning)))


def _given(settings: dict[str, Any], name: str, otherwise: float) -> float:
    """A setting that transformers' own code takes for absent when it is null."""
    return otherwise if settings.get(name) is None else number(settings, name)


def _yarn(config: dict[str, Any], settings: dict[str, Any], theta: float, frequencies: list[float]) -> Rope:
    """Fast pairs keep their frequency, slow ones are divided by `factor`, a linear ramp of pairs in between."""
    original = number(settings, _ORIGINAL)
    factor = _given(settings, "factor", positive(config, "max_position_embeddings") / original)
    pairs = len(frequencies)

    def pair_of(rotations: float) -> float:
        """The pair that turns `rotations` times within the original context."""
        return pairs * math.log(original / (rotations * 2 * math.pi)) / math.log(theta)

    low = pair_of(_given(settings, "beta_fast", 32.0))
    high = pair_of(_given(settings, "beta_slow", 1.0))
    if settings.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * pairs - 1)
    width = (high - low) or 0.001
    mixed = []
    for i, frequency in enumerate(frequencies):
        slow = min(max((i - low) / width, 0.0), 1.0)
        mixed.append(frequency / factor * slow + frequency * (1 - slow))
    default = _mscale(factor, 1.0)
    if settings.get("mscale") and settings.get("mscale_all_dim"):
        default = _mscale(factor, number(settings, "mscale")) / _mscale(factor, number(settings, "mscale_all_dim"))
    return Rope(tuple(mixed), _given(settings, "attention_factor", default))


def _mscale(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def _longrope(config: dict[str, Any], settings: dict[str, Any], frequencies: list[float]) -> Rope:
    for name in ("short_factor", "long_factor"):
        if not isinstance(settings[name], list) or len(settings[name]) != len(frequencies):
            raise InputError(f"config.json: {name} must list {len(frequencies)} numbers")
    short = settings["short_factor"]
    divided = tuple(f / number({"short_factor": s}, "short_factor") for f, s in zip(frequencies, short))
    original = number(settings, _ORIGINAL)
    factor = _given(settings, "factor", positive(config, "max_position_embeddings") / original)
    default = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return Rope(divided, _given(settings, "attention_factor", default))


def _llama3_frequency(frequency: float, settings: dict[str, Any]) -> float:
    """Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, a linear blend in between."""
    factor, original = number(settings, "factor"), number(settings, _ORIGINAL)
    low, high = number(settings, "low_freq_factor"), number(settings, "high_freq_factor")
    wavelength = 2 * math.pi / frequency
    if wavelength < original / high:
        return frequency
    if wavelength > original / low:
        return frequency / factor
    blend = (original / wavelength - low) / (high - low)
    return (1 - blend) * frequency / factor + blend * frequency
