"""Two small parts of Gemma 3n's blocks: a learned residual beside the attention, and gates that are mostly cut off."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from export.graph.layers import BATCH, SEQUENCE, Layers
from export.graph.spec import ModelSpec
from export.graph.writer import Dim


def with_laurel(layers: Layers, spec: ModelSpec, layer: int, value: ir.Value) -> ir.Value:
    """value + norm(right(left(value))), float32 [batch, sequence, hidden_size]."""
    names, prefix, at = spec.names_of_layer(layer).laurel, spec.prefix(layer), f"/model/layers.{layer}/laurel"
    assert names is not None
    shape: list[Dim] = [BATCH, SEQUENCE, spec.hidden_size]
    left = layers.matmul(prefix + names.left, value, f"{at}/left", spec.hidden_size, names.rank)
    right = layers.matmul(prefix + names.right, left, f"{at}/right", names.rank, spec.hidden_size)
    normed = layers.norm("rms", right, prefix + names.norm, f"{at}/norm", shape, spec.norm_epsilon, spec.norm_offset)
    found: ir.Value = layers.g.op("Add", at, [value, normed], shape)
    return found


def cut_gates(layers: Layers, gate: ir.Value, cut: float, width: int, at: str) -> ir.Value:
    """relu(gate - mean - cut * deviation), mean and deviation over a token's gates [batch, sequence, width]."""
    g = layers.g
    shape: list[Dim] = [BATCH, SEQUENCE, width]
    one: list[Dim] = [BATCH, SEQUENCE, 1]
    last = g.constant("axis.last", np.asarray([-1], np.int64))
    total = g.op("ReduceSum", f"{at}/total", [gate, last], one, keepdims=1)
    centred = g.op("Sub", f"{at}/centred", [gate, layers.scaled(total, 1 / width, f"{at}/mean", 1)], shape)
    length = g.op("ReduceL2", f"{at}/length", [centred, last], one, keepdims=1)
    limit = layers.scaled(length, cut * width**-0.5, f"{at}/limit", 1)
    return layers.activate("relu", g.op("Sub", f"{at}/above", [centred, limit], shape), f"{at}/cut", shape)
