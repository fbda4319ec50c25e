"""The linear layers of a block by the names that the family gives them."""

from __future__ import annotations

import onnx_ir as ir

from export.graph.layers import Layers
from export.graph.spec import ModelSpec


def linear(
    layers: Layers, spec: ModelSpec, layer: int, module: str, value: ir.Value, columns: int, rows: int
) -> ir.Value:
    """float32 [batch, sequence, rows] of a value [batch, sequence, columns]."""
    name = f"/model/layers.{layer}/{module.replace('.', '/')}"
    return layers.matmul(spec.prefix(layer) + module, value, name, columns, rows)


def factored(
    layers: Layers, spec: ModelSpec, layer: int, factor: str | None, rank: int, value: ir.Value
) -> tuple[ir.Value, int]:
    """What two layers read, and its columns: the value, or what their shared factor makes of it."""
    if factor is None:
        return value, spec.hidden_size
    return linear(layers, spec, layer, factor, value, spec.hidden_size, rank), rank
