"""The feed-forward part of a block as ONNX nodes: dense, gated or not; experts where the family has them."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir

from export.graph.experts import ExpertLayers
from export.graph.gemma.beside import feed_forward_beside
from export.graph.gemma.cut import cut_gates
from export.graph.layers import BATCH, SEQUENCE, Layers
from export.graph.spec import ModelSpec
from export.graph.whole.linear import factored, linear
from export.graph.writer import Dim


class FeedForwardLayers:
    """Writes the feed-forward parts of one model."""

    def __init__(self, spec: ModelSpec, layers: Layers) -> None:
        self.spec, self.layers, self.g = spec, layers, layers.g
        self._linear = partial(linear, layers, spec)
        self._factored = partial(factored, layers, spec)
        self.experts = ExpertLayers(spec, layers)

    def write(self, layer: int, value: ir.Value, stream: ir.Value) -> ir.Value:
        """value: what the part reads; stream: the residual stream that it is added to."""
        g, spec, names = self.g, self.spec, self.spec.names_of_layer(layer)
        if names.experts is not None and names.experts.beside is not None:
            return feed_forward_beside(self.experts, layer, value, stream)
        if names.experts is not None:
            return self.experts.feed_forward(layer, value)
        at, width = f"/model/layers.{layer}/mlp", names.feed_forward or spec.feed_forward
        shape: list[Dim] = [BATCH, SEQUENCE, width]
        if names.fused_gate_up is not None:
            fused = self._linear(layer, names.fused_gate_up, value, spec.hidden_size, 2 * width)
            sizes = g.constant("mlp.gate_up_widths", np.asarray([width, width], np.int64))
            gate, up = g.op("Split", f"{at}/split_gate_up", [fused, sizes], [shape, shape], axis=-1)
        else:
            assert names.up
            gate = None
            read, columns = self._factored(layer, names.shared.gate_up, names.shared.gate_up_rank, value)
            if names.gate is not None:
                gate = self._linear(layer, names.gate, read, columns, width)
            up = self._linear(layer, names.up, read, columns, width)
        if gate is not None and names.gate_cut is not None:
            gate = cut_gates(self.layers, gate, names.gate_cut, width, f"{at}/gate_cut")
        if gate is not None:
            gate = self.layers.scaled(gate, spec.gate_scale, f"{at}/scaled_gate", width)
        if gate is None:
            inner = self.layers.activate(spec.activation, up, f"{at}/activation", shape)
        else:
            inner = self.layers.gated(spec, gate, up, at, shape)
        assert names.down is not None
        return self._linear(layer, names.down, inner, width, spec.hidden_size)
