"""A dense feed-forward part and experts that read the residual stream beside it (Gemma 4 with experts)."""

from __future__ import annotations

import onnx_ir as ir

from export.contract.errors import InputError
from export.graph.experts import ExpertLayers
from export.graph.layers import BATCH, SEQUENCE
from export.graph.writer import Dim


def feed_forward_beside(experts: ExpertLayers, layer: int, value: ir.Value, stream: ir.Value) -> ir.Value:
    """What both give, each behind a norm of its own, float32 [batch, sequence, hidden_size].

    value: what the dense part reads; stream: the residual stream.
    """
    layers, spec, g = experts.layers, experts.spec, experts.g
    names, prefix, at = spec.names_of_layer(layer), spec.prefix(layer), f"/model/layers.{layer}/mlp"
    assert names.experts is not None and names.experts.beside is not None
    beside, hidden, width = names.experts.beside, spec.hidden_size, names.feed_forward or spec.feed_forward
    shape: list[Dim] = [BATCH, SEQUENCE, hidden]

    def norm(x: ir.Value, module: str) -> ir.Value:
        return layers.norm("rms", x, prefix + module, f"{at}/{module}", shape, spec.norm_epsilon, spec.norm_offset)

    gate, up = (
        layers.matmul(prefix + name, value, f"{at}/dense/{kind}", hidden, width)
        for name, kind in ((beside.gate, "gate"), (beside.up, "up"))
    )
    inner = layers.gated(spec, gate, up, f"{at}/dense", [BATCH, SEQUENCE, width])
    dense = norm(layers.matmul(prefix + beside.down, inner, f"{at}/dense/down", width, hidden), beside.norm)
    scale = layers.vector(prefix + beside.router_scale)
    if tuple(scale.shape or ()) != (hidden,):
        raise InputError(f"{layers.checkpoint.folder}: {scale.name} is {scale.shape}, expected {[hidden]}")
    routed = g.op(
        "RMSNormalization", f"{at}/router/norm", [stream, scale], shape, epsilon=spec.norm_epsilon, axis=-1
    )  # fmt: skip
    routed = layers.scaled(routed, hidden**-0.5, f"{at}/router/norm_scaled", hidden)
    picked = experts.feed_forward(layer, norm(stream, beside.experts_norm), routed)
    found: ir.Value = g.op("Add", f"{at}/beside", [dense, norm(picked, beside.experts_post_norm)], shape)
    return found
