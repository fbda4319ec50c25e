"""A block's gated delta net (Qwen3.5): what stands in place of attention."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from export.contract.formats.base import DOMAIN
from export.contract.operators.causal_convolution import CAUSAL_CONVOLUTION
from export.contract.operators.delta_rule import GATED_DELTA_RULE
from export.graph.layers import BATCH, SEQUENCE
from export.graph.parts import GatedDeltaNet
from export.graph.recurrent.parts import RecurrentLayers
from export.graph.writer import Dim

_EPSILON = 1e-6  # added to the squared lengths of queries and keys


class DeltaNetLayers(RecurrentLayers):
    """Writes the gated delta nets of one model."""

    def mix(
        self, layer: int, value: ir.Value, mask: ir.Value, states: tuple[ir.Value, ...]
    ) -> tuple[ir.Value, tuple[ir.Value, ...]]:
        """What goes into the block's `attention_output`, float32 [batch, sequence, values], and the new states.

        value: the block's normed input; mask: of convolution.token_mask(). Padding is set to zero before the first
        products, as transformers does it.
        """
        g, net = self.g, self.spec.names_of_layer(layer).delta_net
        assert net is not None
        at = f"/model/layers.{layer}/linear_attn"
        masked = g.op("Mul", f"{at}/masked", [value, mask], [BATCH, SEQUENCE, self.spec.hidden_size])
        mixed = self._product(layer, net.qkv, masked, net.channels)
        gate = self._product(layer, net.gate, masked, net.values)
        decay, beta = (self._float_product(layer, name, masked, net.value_heads) for name in (net.decay, net.beta))
        convolved, conv_state = self._convolved(layer, net.kernel, (net.channels, net.width), mixed, states[0])
        active = self.layers.activate(
            self.spec.activation, convolved, f"{at}/activation", [BATCH, SEQUENCE, net.channels]
        )
        sizes = g.constant("delta_net.widths", np.asarray([net.keys, net.keys, net.values], np.int64))
        shapes = [[BATCH, SEQUENCE, width] for width in (net.keys, net.keys, net.values)]
        query, key, values = g.op("Split", f"{at}/split", [active, sizes], shapes, axis=-1)
        rate, bias = self._rate(layer, net.rate, net.value_heads), self._parameter(layer, net.bias, (net.value_heads,))
        out, state = g.op(
            GATED_DELTA_RULE, f"{at}/delta_rule", [query, key, values, decay, beta, rate, bias, states[1]],
            [[BATCH, SEQUENCE, net.values], [BATCH, net.value_heads, net.key_dim, net.value_dim]], domain=DOMAIN,
            key_heads=net.key_heads, value_heads=net.value_heads, epsilon=_EPSILON,
        )  # fmt: skip
        self.layers.operators |= {GATED_DELTA_RULE, CAUSAL_CONVOLUTION}
        return self._gated(layer, net, out, gate), (conv_state, state)

    def _float_product(self, layer: int, module: str, value: ir.Value, rows: int) -> ir.Value:
        """With a layer that stays float32 and has no bias."""
        g, hidden, name = self.g, self.spec.hidden_size, f"/model/layers.{layer}/{module.replace('.', '/')}"
        matrix = self._parameter(layer, f"{module}.weight", (rows, hidden))
        turned = g.op("Transpose", f"{name}/transpose", [matrix], [hidden, rows], perm=[1, 0])
        return g.op("MatMul", name, [value, turned], [BATCH, SEQUENCE, rows])

    def _gated(self, layer: int, net: GatedDeltaNet, value: ir.Value, gate: ir.Value) -> ir.Value:
        """Each head normed, times silu of the gate."""
        g, at = self.g, f"/model/layers.{layer}/linear_attn"
        flat: list[Dim] = [BATCH, SEQUENCE, net.values]
        split: list[Dim] = [BATCH, SEQUENCE, net.value_heads, net.value_dim]
        name, width = f"/model/layers.{layer}/{net.norm.replace('.', '/')}", f"shape.width_{net.values}"
        heads = g.constant(f"shape.parts_{net.value_heads}_{net.value_dim}", np.asarray([0, 0, *split[2:]], np.int64))
        parts = g.op("Reshape", f"{name}/split_heads", [value, heads], split)
        full = self.spec.prefix(layer) + net.norm
        normed = self.layers.norm("rms", parts, full, name, split, self.spec.norm_epsilon)
        joined = g.op(
            "Reshape", f"{name}/join_heads", [normed, g.constant(width, np.asarray([0, 0, net.values], np.int64))], flat
        )
        active = self.layers.activate("silu", gate, f"{at}/gate", flat)
        return g.op("Mul", f"{at}/gated", [joined, active], flat)
