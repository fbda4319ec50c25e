"""Embeddings for each layer: what a token brings to every block beside its hidden state (Gemma 3n and 4).

The rows of the table are looked up once for all layers; blocks take their own part of it.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from export.graph.layers import BATCH, SEQUENCE, Layers
from export.graph.spec import ModelSpec
from export.graph.writer import Dim, GraphWriter


def per_layer_inputs(layers: Layers, spec: ModelSpec, input_ids: ir.Value, hidden: ir.Value) -> tuple[ir.Value, ...]:
    """For each layer what its block gets, float32 [batch, sequence, width]; hidden: the tokens' embeddings."""
    table, g, at = spec.per_layer, layers.g, "/model/per_layer"
    assert table is not None
    count, width = spec.layers, table.width
    flat: list[Dim] = [BATCH, SEQUENCE, count * width]
    parts: list[Dim] = [BATCH, SEQUENCE, count, width]
    ids = _within(g, input_ids, table.rows) if table.rows < spec.vocab_size else input_ids
    rows = layers.lookup(table.embedding, ids, f"{at}/embedding", (table.rows, count * width))
    rows = layers.scaled(rows, width**0.5, f"{at}/embedding_scaled", count * width)
    projected = layers.matmul(table.projection, hidden, f"{at}/projection", spec.hidden_size, count * width)
    projected = layers.scaled(projected, spec.hidden_size**-0.5, f"{at}/projection_scaled", count * width)
    split = g.constant(f"shape.parts_{count}_{width}", np.asarray([0, 0, count, width], np.int64))
    joined = g.constant(f"shape.width_{count * width}", np.asarray([0, 0, count * width], np.int64))
    apart = g.op("Reshape", f"{at}/split", [projected, split], parts)
    normed = layers.norm("rms", apart, table.norm, f"{at}/norm", parts, spec.norm_epsilon, spec.norm_offset)
    whole = g.op("Reshape", f"{at}/join", [normed, joined], flat)
    both = layers.scaled(g.op("Add", f"{at}/sum", [whole, rows], flat), 2**-0.5, at, count * width)
    sizes = g.constant("per_layer.widths", np.full(count, width, np.int64))
    found: tuple[ir.Value, ...] = g.op(
        "Split", f"{at}/by_layer", [both, sizes], [[BATCH, SEQUENCE, width]] * count, axis=-1
    )
    return found


def _within(g: GraphWriter, ids: ir.Value, rows: int) -> ir.Value:
    """int64 [batch, sequence]: tokens that the table has no row for become the first."""
    at, shape, long = "/model/per_layer/ids", [BATCH, SEQUENCE], ir.DataType.INT64
    limit = g.constant("per_layer.rows", np.asarray(rows, np.int64))
    known = g.op("Less", f"{at}/known", [ids, limit], shape, ir.DataType.BOOL)
    ones = g.op("Cast", f"{at}/ones", [known], shape, long, to=long)
    found: ir.Value = g.op("Mul", at, [ids, ones], shape, long)
    return found


def add_per_layer_input(layers: Layers, spec: ModelSpec, layer: int, hidden: ir.Value, own: ir.Value) -> ir.Value:
    """`hidden` float32 [batch, sequence, hidden_size] and what the block makes of its part of the embeddings."""
    shape: list[Dim] = [BATCH, SEQUENCE, spec.hidden_size]
    out = per_layer_part(layers, spec, layer, hidden, own)
    found: ir.Value = layers.g.op("Add", f"/model/layers.{layer}/per_layer/residual", [hidden, out], shape)
    return found


def per_layer_part(layers: Layers, spec: ModelSpec, layer: int, hidden: ir.Value, own: ir.Value) -> ir.Value:
    """norm(projection(activation(gate(hidden)) * own)), float32 [batch, sequence, hidden_size]."""
    names, table = spec.names_of_layer(layer).per_layer, spec.per_layer
    assert names is not None and table is not None
    at, prefix, width = f"/model/layers.{layer}/per_layer", spec.prefix(layer), table.width
    shape: list[Dim] = [BATCH, SEQUENCE, spec.hidden_size]
    gate = layers.matmul(prefix + names.gate, hidden, f"{at}/gate", spec.hidden_size, width)
    active = layers.activate(spec.activation, gate, f"{at}/activation", [BATCH, SEQUENCE, width])
    gated = layers.g.op("Mul", f"{at}/gated", [active, own], [BATCH, SEQUENCE, width])
    out = layers.matmul(prefix + names.projection, gated, f"{at}/projection", width, spec.hidden_size)
    return layers.norm("rms", out, prefix + names.norm, f"{at}/norm", shape, spec.norm_epsilon, spec.norm_offset)
