"""Layers that differ from each other: sizes of their own (`per_layer_config`), keys and values of an earlier layer."""

from __future__ import annotations

from typing import Any

from export.contract.errors import InputError
from export.graph.archs._config import positive

_SIZES = ("num_key_value_heads", "head_dim")


def whole_number(config: dict[str, Any], name: str) -> int:
    """Field `name` as a whole number from 0."""
    value = config[name]
    if type(value) is not int or value < 0:
        raise InputError(f"config.json: {name} must be a whole number from 0, not {value!r}")
    return value


def sizes_of_layers(config: dict[str, Any]) -> list[tuple[int, int]]:
    """Key-value heads and their columns for each layer: the model's, or what `per_layer_config` has for the layer.

    Raises InputError where that has anything else.
    """
    layers, stated = positive(config, "num_hidden_layers"), config.get("per_layer_config") or {}
    found = [tuple(positive(config, name) for name in _SIZES)] * layers
    for layer, own in stated.items():
        unknown = sorted(set(own) - set(_SIZES))
        if unknown:
            raise InputError(f"config.json: per_layer_config with {unknown[0]} is not supported")
        if not 0 <= int(layer) < layers:
            raise InputError(f"config.json: per_layer_config is of a layer {layer}, of {layers}")
        found[int(layer)] = tuple(positive({**config, **own}, name) for name in _SIZES)
    return [(kv_heads, head_dim) for kv_heads, head_dim in found]


def earlier_caches(config: dict[str, Any], sharing: int) -> tuple[int, ...]:
    """For each layer the layer whose keys and values it sees: of the last `sharing` layers the last before them that
    is of the same type; empty where none shares. Raises InputError where there is none of the type.
    """
    types, layers = config["layer_types"], positive(config, "num_hidden_layers")
    if not sharing:
        return ()
    own = types[: max(layers - sharing, 0)]
    missing = sorted(set(types) - set(own))
    if missing:
        raise InputError(f"config.json: no layer of {missing[0]} has keys and values that others could share")
    last = {kind: len(own) - 1 - own[::-1].index(kind) for kind in own}
    return tuple(layer if layer < len(own) else last[kind] for layer, kind in enumerate(types))
