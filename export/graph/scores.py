"""The head of a reranker: from the states of a pair of texts to its score, in float32."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from export.contract.errors import InputError
from export.graph.layers import BATCH, Layers
from export.graph.pooling import pooled
from export.graph.spec import ModelSpec
from export.graph.writer import Dim


def score(layers: Layers, spec: ModelSpec, hidden: ir.Value, attention_mask: ir.Value) -> ir.Value:
    """float32 [batch, 1], unbounded, from hidden [batch, sequence, width] and the mask int64 [batch, sequence].

    Raises InputError when the checkpoint lacks a tensor of the head.
    """
    head, width, at = spec.scores, spec.hidden_size, "/scores"
    assert head is not None
    shape: list[Dim] = [BATCH, width]
    out = pooled(layers.g, head.pooling, hidden, attention_mask, width)
    out = _linear(layers, head.dense, out, width, width, f"{at}/dense", head.dense_bias)
    out = layers.activate(head.activation, out, f"{at}/activation", shape)
    if head.norm:
        out = layers.norm(spec.norm, out, head.norm, f"{at}/norm", shape, spec.norm_epsilon)
    return _linear(layers, head.output, out, width, 1, f"{at}/output", bias=True)


def _linear(layers: Layers, module: str, value: ir.Value, columns: int, rows: int, name: str, bias: bool) -> ir.Value:
    g, weight = layers.g, f"{module}.weight"
    if not layers.checkpoint.has(weight):
        raise InputError(f"{layers.checkpoint.folder}: the quantized checkpoint has no tensor {weight}")
    stored = g.lazy(weight, np.float32, [columns, rows], lambda: layers.checkpoint.tensor(weight, "").T)
    out: ir.Value = g.op("MatMul", name, [value, stored], [BATCH, rows])
    return g.op("Add", f"{name}/add_bias", [out, layers.vector(f"{module}.bias")], [BATCH, rows]) if bias else out
