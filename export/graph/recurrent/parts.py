"""What delta nets and state spaces share: their two states, the convolution before them, parameters that stay float32.

The states have the names and shapes that onnxruntime-genai gives them: `conv_state`, float32 [batch, channels,
width - 1], what the convolution sees of earlier calls, and `recurrent_state`, float32 [batch, heads, rows, columns].
Both are zeros at the start.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from export.artefacts.states import KEYS_AND_VALUES
from export.contract.errors import InputError
from export.contract.formats.base import DOMAIN
from export.contract.operators.causal_convolution import CAUSAL_CONVOLUTION
from export.graph.layers import BATCH, SEQUENCE, Layers
from export.graph.recurrent.convolution import short_states
from export.graph.spec import ModelSpec
from export.graph.writer import Dim, GraphWriter


def states(g: GraphWriter, spec: ModelSpec, layer: int) -> tuple[ir.Value, ...]:
    """Inputs of the graph: the states of a layer, none where it keeps none."""
    names = spec.names_of_layer(layer)
    net, space = names.delta_net, names.state_space
    if names.convolution is not None:
        return short_states(g, spec, names.convolution, layer)
    if net is not None:
        return _two_states(g, layer, (net.channels, net.width), (net.value_heads, net.key_dim, net.value_dim))
    if space is not None:
        return _two_states(g, layer, (space.channels, space.width), (space.heads, space.state_size, space.head_dim))
    return ()


def _two_states(
    g: GraphWriter, layer: int, convolution: tuple[int, int], recurrent: tuple[int, int, int]
) -> tuple[ir.Value, ...]:
    """convolution: channels and width; recurrent: heads, rows and columns."""
    shapes: tuple[tuple[str, list[Dim]], ...] = (
        ("conv_state", [BATCH, convolution[0], convolution[1] - 1]),
        ("recurrent_state", [BATCH, *recurrent]),
    )
    return tuple(g.input(f"{KEYS_AND_VALUES}{layer}.{n}", ir.DataType.FLOAT, shape) for n, shape in shapes)


class RecurrentLayers:
    """Base of what writes the delta nets or the state spaces of one model."""

    def __init__(self, spec: ModelSpec, layers: Layers) -> None:
        self.spec, self.layers, self.g = spec, layers, layers.g

    def _product(self, layer: int, module: str, value: ir.Value, rows: int) -> ir.Value:
        """With a layer that is quantized."""
        name = f"/model/layers.{layer}/{module.replace('.', '/')}"
        return self.layers.matmul(self.spec.prefix(layer) + module, value, name, self.spec.hidden_size, rows)

    def _convolved(
        self, layer: int, kernel: str, shape: tuple[int, int], value: ir.Value, state: ir.Value,
        scales: np.ndarray | None = None,
    ) -> tuple[ir.Value, ir.Value]:  # fmt: skip
        """What the convolution `kernel` gives, with its bias where it has one, and its new state.

        shape: channels, and positions that an output sees. scales: factors [channels] on its inputs, taken into its
        weights; the state has the inputs as they are.
        """
        channels, width = shape
        if scales is None:
            weight = self._parameter(layer, f"{kernel}.weight", (channels, 1, width))
        else:
            weight = self._scaled(f"{self.spec.prefix(layer)}{kernel}.weight", (channels, 1, width), scales)
        rows: list[Dim] = [BATCH, SEQUENCE, channels]
        name = f"/model/layers.{layer}/{kernel.replace('.', '/')}"
        out, kept = self.g.op(
            CAUSAL_CONVOLUTION, name, [value, weight, state], [rows, [BATCH, channels, width - 1]], domain=DOMAIN,
            channels=channels,
        )  # fmt: skip
        self.layers.operators.add(CAUSAL_CONVOLUTION)
        if self.layers.checkpoint.has(f"{self.spec.prefix(layer)}{kernel}.bias"):
            bias = self._parameter(layer, f"{kernel}.bias", (channels,))
            out = self.g.op("Add", f"{name}/add_bias", [out, bias], rows)
        return out, kept

    def _scaled(self, name: str, shape: tuple[int, ...], scales: np.ndarray) -> ir.Value:
        """A stored tensor times a factor for each of its first indices."""
        self._check(name, shape)
        checkpoint, factors = self.layers.checkpoint, scales.reshape(-1, *(1,) * (len(shape) - 1))
        return self.g.lazy(f"{name}.scaled", np.float32, shape, lambda: checkpoint.tensor(name, "") * factors)

    def _rate(self, layer: int, module: str, heads: int) -> ir.Value:
        """Minus the exponential of what is stored, a number of each head."""
        name, checkpoint = self.spec.prefix(layer) + module, self.layers.checkpoint
        self._check(name, (heads,))

        def rate() -> np.ndarray:
            with np.errstate(over="ignore"):
                return -np.exp(checkpoint.tensor(name, "").astype(np.float32))

        return self.g.lazy(f"{name}.negative_exponential", np.float32, (heads,), rate)

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
