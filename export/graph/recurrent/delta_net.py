"""A block's gated delta net (Qwen3.5): what stands in place of attention, and its two states.

The states have the names and shapes that onnxruntime-genai gives them: `conv_state`, float32 [batch, channels,
width - 1], what the convolution sees of earlier calls, and `recurrent_state`, float32 [batch, value_heads, key_dim,
value_dim]. Both are zeros at the start.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from export.artefacts.states import KEYS_AND_VALUES
from export.contract.errors import InputError
from export.contract.formats.base import DOMAIN
from export.contract.operators.causal_convolution import CAUSAL_CONVOLUTION
from export.contract.operators.delta_rule import GATED_DELTA_RULE
from export.graph.layers import BATCH, SEQUENCE, Layers
from export.graph.spec import GatedDeltaNet, ModelSpec
from export.graph.writer import Dim, GraphWriter

_EPSILON = 1e-6  # added to the squared lengths of queries and keys


def delta_net_states(g: GraphWriter, net: GatedDeltaNet, layer: int) -> tuple[ir.Value, ir.Value]:
    """Inputs of the graph: the states of a layer."""
    shapes: tuple[tuple[str, list[Dim]], ...] = (
        ("conv_state", [BATCH, net.channels, net.width - 1]),
        ("recurrent_state", [BATCH, net.value_heads, net.key_dim, net.value_dim]),
    )
    first, second = (g.input(f"{KEYS_AND_VALUES}{layer}.{n}", ir.DataType.FLOAT, shape) for n, shape in shapes)
    return first, second


class DeltaNetLayers:
    """Writes the gated delta nets of one model."""

    def __init__(self, spec: ModelSpec, layers: Layers) -> None:
        self.spec, self.layers, self.g = spec, layers, layers.g

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
        convolved, conv_state = self._convolved(layer, net, mixed, states[0])
        active = self.layers.activate(
            self.spec.activation, convolved, f"{at}/activation", [BATCH, SEQUENCE, net.channels]
        )
        sizes = g.constant("delta_net.widths", np.asarray([net.keys, net.keys, net.values], np.int64))
        shapes = [[BATCH, SEQUENCE, width] for width in (net.keys, net.keys, net.values)]
        query, key, values = g.op("Split", f"{at}/split", [active, sizes], shapes, axis=-1)
        rate, bias = self._rate(layer, net), self._parameter(layer, net.bias, (net.value_heads,))
        out, state = g.op(
            GATED_DELTA_RULE, f"{at}/delta_rule", [query, key, values, decay, beta, rate, bias, states[1]],
            [[BATCH, SEQUENCE, net.values], [BATCH, net.value_heads, net.key_dim, net.value_dim]], domain=DOMAIN,
            key_heads=net.key_heads, value_heads=net.value_heads, epsilon=_EPSILON,
        )  # fmt: skip
        self.layers.operators |= {GATED_DELTA_RULE, CAUSAL_CONVOLUTION}
        return self._gated(layer, net, out, gate), (conv_state, state)

    def _product(self, layer: int, module: str, value: ir.Value, rows: int) -> ir.Value:
        """With a layer that is quantized."""
        name = f"/model/layers.{layer}/{module.replace('.', '/')}"
        return self.layers.matmul(self.spec.prefix(layer) + module, value, name, self.spec.hidden_size, rows)

    def _float_product(self, layer: int, module: str, value: ir.Value, rows: int) -> ir.Value:
        """With a layer that stays float32 and has no bias."""
        g, hidden, name = self.g, self.spec.hidden_size, f"/model/layers.{layer}/{module.replace('.', '/')}"
        matrix = self._parameter(layer, f"{module}.weight", (rows, hidden))
        turned = g.op("Transpose", f"{name}/transpose", [matrix], [hidden, rows], perm=[1, 0])
        return g.op("MatMul", name, [value, turned], [BATCH, SEQUENCE, rows])

    def _convolved(self, layer: int, net: GatedDeltaNet, value: ir.Value, state: ir.Value) -> tuple[ir.Value, ir.Value]:
        weight = self._parameter(layer, f"{net.kernel}.weight", (net.channels, 1, net.width))
        shapes: list[list[Dim]] = [[BATCH, SEQUENCE, net.channels], [BATCH, net.channels, net.width - 1]]
        made: tuple[ir.Value, ir.Value] = self.g.op(
            CAUSAL_CONVOLUTION, f"/model/layers.{layer}/{net.kernel.replace('.', '/')}", [value, weight, state], shapes,
            domain=DOMAIN, channels=net.channels,
        )  # fmt: skip
        return made

    def _rate(self, layer: int, net: GatedDeltaNet) -> ir.Value:
        """Minus the exponential of what is stored, a number of each head."""
        name, checkpoint = self.spec.prefix(layer) + net.rate, self.layers.checkpoint
        self._check(name, (net.value_heads,))

        def rate() -> np.ndarray:
            with np.errstate(over="ignore"):
                return -np.exp(checkpoint.tensor(name, "").astype(np.float32))

        return self.g.lazy(f"{name}.negative_exponential", np.float32, (net.value_heads,), rate)

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

    def _parameter(self, layer: int, name: str, shape: tuple[int, ...]) -> ir.Value:
        full = self.spec.prefix(layer) + name
        self._check(full, shape)
        return self.layers.vector(full)

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        """Raises InputError where the checkpoint lacks a tensor or has it in another shape."""
        record = self.layers.checkpoint.records.get(name)
        if record is None or record.shape != shape:
            problem = "missing" if record is None else f"{list(record.shape)}, expected {list(shape)}"
            raise InputError(f"{self.layers.checkpoint.folder}: {name} is {problem}")
