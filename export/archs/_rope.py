"""Rotary position embeddings as config.json describes them: the variants of transformers' modeling_rope_utils."""

from __future__ import annotations

import math
from typing import Any

from export.archs._config import number, positive
from export.errors import InputError
from export.spec import Rope


def rope_settings(config: dict[str, Any]) -> dict[str, Any]:
    """`rope_parameters` (transformers 5) or `rope_scaling` (before), as it stands; {} when there is neither."""
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(found, dict):
        raise InputError(f"config.json: rope_parameters must be an object, not {found!r}")
    return found


def rope(
    config: dict[str, Any],
    head_dim: int,
    settings: dict[str, Any] | None = None,
    theta: float = 10000.0,
    partial: float = 1.0,
) -> Rope:
    """Frequencies of the rotated channels and the factor on cos and sin.

    settings: where it is not that of `rope_settings` (Gemma 3 has one for each layer type). theta, partial: where the
    config says nothing. Kinds: default; linear; dynamic (within the context it was trained for, which is all that is
    exported, it is the default one); yarn (arXiv 2309.00071); longrope (arXiv 2402.13753) with its short factors,
    which reach to `original_max_position_embeddings`; llama3.
    """
    settings = rope_settings(config) if settings is None else settings
    kind = settings.get("rope_type", settings.get("type", "default"))
    theta = number(settings, "rope_theta", number(config, "rope_theta", theta))
    part = number(settings, "partial_rotary_factor", number(config, "partial_rotary_factor", partial))
    width = int(head_dim * part)
    if part > 1 or width < 2 or width % 2:
        raise InputError(f"config.json: rotary positions need an even part of head_dim, not {part:g} x {head_dim}")
    frequencies = [theta ** (-2 * i / width) for i in range(width // 2)]
    if kind in ("default", "dynamic"):
        return Rope(tuple(frequencies))
    if kind == "linear":
        factor = number(settings, "factor", 1.0)
        return Rope(tuple(f / factor for f in frequencies))
    if kind == "llama3":
        return Rope(tuple(_llama3_frequency(f, settings) for f in frequencies))
    if kind == "yarn":
        return _yarn(config, settings, theta, frequencies)
    if kind in ("longrope", "su"):
        return _longrope(config, settings, frequencies)
    kinds = "default, linear, dynamic, yarn, longrope, llama3"
    raise InputError(f"config.json: rope_type {kind!r} is not supported; supported are {kinds}")


def exported_context(config: dict[str, Any]) -> int:
    """Positions that the exported rotation is right for: with longrope those of its short factors."""
    context = positive(config, "max_position_embeddings")
    settings = rope_settings(config)
    if settings.get("rope_type", settings.get("type")) in ("longrope", "su"):
        return min(context, int(_original_context(config, settings)))
    return context


def _original_context(config: dict[str, Any], settings: dict[str, Any]) -> float:
    name = "original_max_position_embeddings"
    return number(settings, name, number(config, name, positive(config, "max_position_embeddings")))


def _yarn(config: dict[str, Any], settings: dict[str, Any], theta: float, frequencies: list[float]) -> Rope:
    """Fast pairs keep their frequency, slow ones are divided by `factor`, a linear ramp of pairs in between."""
    original = _original_context(config, settings)
    factor = number(settings, "factor", positive(config, "max_position_embeddings") / original)
    pairs = len(frequencies)

    def pair_of(rotations: float) -> float:
        """The pair that turns `rotations` times within the original context."""
        return pairs * math.log(original / (rotations * 2 * math.pi)) / math.log(theta)

    low = pair_of(number(settings, "beta_fast", 32.0))
    high = pair_of(number(settings, "beta_slow", 1.0))
    if settings.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * pairs - 1)
    width = (high - low) or 0.001
    mixed = []
    for i, frequency in enumerate(frequencies):
        slow = min(max((i - low) / width, 0.0), 1.0)
        mixed.append(frequency / factor * slow + frequency * (1 - slow))
    scale, all_dims = settings.get("mscale"), settings.get("mscale_all_dim")
    default = _mscale(factor, 1.0)
    if scale and all_dims:
        default = _mscale(factor, number(settings, "mscale", 1.0)) / _mscale(
            factor, number(settings, "mscale_all_dim", 1.0)
        )
    return Rope(tuple(mixed), number(settings, "attention_factor", default))


def _mscale(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def _longrope(config: dict[str, Any], settings: dict[str, Any], frequencies: list[float]) -> Rope:
    short = settings.get("short_factor")
    if not isinstance(short, list) or len(short) != len(frequencies):
        raise InputError(f"config.json: short_factor must list {len(frequencies)} numbers")
    divided = tuple(f / number({"short_factor": s}, "short_factor", 1.0) for f, s in zip(frequencies, short))
    original = _original_context(config, settings)
    factor = number(settings, "factor", positive(config, "max_position_embeddings") / original)
    default = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return Rope(divided, number(settings, "attention_factor", default))


def _llama3_frequency(frequency: float, settings: dict[str, Any]) -> float:
    """Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, a linear blend in between."""
    factor = number(settings, "factor", 8.0)
    low, high = number(settings, "low_freq_factor", 1.0), number(settings, "high_freq_factor", 4.0)
    original = number(settings, "original_max_position_embeddings", 8192)
    wavelength = 2 * math.pi / frequency
    if wavelength < original / high:
        return frequency
    if wavelength > original / low:
        return frequency / factor
    blend = (original / wavelength - low) / (high - low)
    return (1 - blend) * frequency / factor + blend * frequency
