"""A block's selective state space (Mamba-2): what stands in place of attention or beside it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from export.contract.formats.base import DOMAIN
from export.contract.operators.state_space import LARGEST, SELECTIVE_STATE_SPACE
from export.graph.layers import BATCH, SEQUENCE
from export.graph.parts import StateSpace
from export.graph.recurrent.parts import RecurrentLayers
from export.graph.writer import Dim


class StateSpaceLayers(RecurrentLayers):
    """Writes the state spaces of one model."""

    def mix(
        self, layer: int, value: ir.Value, mask: ir.Value, states: tuple[ir.Value, ...]
    ) -> tuple[ir.Value, tuple[ir.Value, ...]]:
        """What the block adds, float32 [batch, sequence, hidden_size], and the new states.

        value: the block's normed input; mask: of convolution.token_mask(). Padding is set to zero before the first
        product and behind the convolution, as transformers does it.
        """
        g, space = self.g, self.spec.names_of_layer(layer).state_space
        assert space is not None
        at = f"/model/layers.{layer}/state_space"
        channels: list[Dim] = [BATCH, SEQUENCE, space.channels]
        hidden = self.spec.hidden_size
        masked = g.op("Mul", f"{at}/masked", [value, mask], [BATCH, SEQUENCE, hidden])
        masked = self.layers.scaled(masked, space.input_scale, f"{at}/scaled_input", hidden)
        gate, mixed, step = self._split(
            f"{at}/split", self._product(layer, space.input, masked, space.rows),
            (space.values, space.channels, space.heads),
        )  # fmt: skip
        gate = self.layers.scaled(gate, space.scales[0], f"{at}/scaled_gate", space.values)
        step = self.layers.scaled(step, space.scales[4], f"{at}/scaled_step", space.heads)
        shape = (space.channels, space.width)
        convolved, conv_state = self._convolved(layer, space.kernel, shape, mixed, states[0], _channel_scales(space))
        active = self.layers.activate(space.activation, convolved, f"{at}/activation", channels)
        known = g.op("Mul", f"{at}/masked_again", [active, mask], channels)
        values, written, read = self._split(f"{at}/split_again", known, (space.values, space.states, space.states))
        numbers = [self._rate(layer, space.rate, space.heads)]
        numbers += [self._parameter(layer, name, (space.heads,)) for name in (space.bias, space.skip)]
        out, state = g.op(
            SELECTIVE_STATE_SPACE, at, [values, step, written, read, *numbers, states[1]],
            [[BATCH, SEQUENCE, space.values], [BATCH, space.heads, space.state_size, space.head_dim]], domain=DOMAIN,
            heads=space.heads, groups=space.groups, least=space.least_step,
            most=LARGEST if space.most_step is None else space.most_step,
        )  # fmt: skip
        self.layers.operators.add(SELECTIVE_STATE_SPACE)
        module = self.spec.prefix(layer) + space.output
        name = f"/model/layers.{layer}/{space.output.replace('.', '/')}"
        gated = self._gated(layer, space, out, gate)
        made = self.layers.matmul(module, gated, name, space.values, hidden)
        return self.layers.scaled(made, space.output_scale, f"{at}/scaled_output", hidden), (conv_state, state)

    def _split(self, name: str, value: ir.Value, widths: tuple[int, ...]) -> tuple[ir.Value, ...]:
        sizes = self.g.constant(f"state_space.widths_{'_'.join(map(str, widths))}", np.asarray(widths, np.int64))
        shapes: list[list[Dim]] = [[BATCH, SEQUENCE, width] for width in widths]
        parts: tuple[ir.Value, ...] = self.g.op("Split", name, [value, sizes], shapes, axis=-1)
        return parts

    def _gated(self, layer: int, space: StateSpace, value: ir.Value, gate: ir.Value) -> ir.Value:
        """The values times silu of the gate, normed behind that or before it."""
        at = f"/model/layers.{layer}/state_space"
        flat: list[Dim] = [BATCH, SEQUENCE, space.values]
        if space.norm is not None and space.gate_after_norm:
            value = self._normed(layer, space, value, space.norm)
        active = self.layers.activate("silu", gate, f"{at}/gate", flat)
        gated = self.g.op("Mul", f"{at}/gated", [value, active], flat)
        if space.norm is None or space.gate_after_norm:
            return gated
        return self._normed(layer, space, gated, space.norm)

    def _normed(self, layer: int, space: StateSpace, value: ir.Value, norm: str) -> ir.Value:
        """RMSNorm of each of the parts alone, whose weights differ."""
        name, full = f"/model/layers.{layer}/{norm.replace('.', '/')}", self.spec.prefix(layer) + norm
        flat: list[Dim] = [BATCH, SEQUENCE, space.values]
        weight = self._parameter(layer, f"{norm}.weight", (space.values,))
        if space.norm_groups == 1:
            return self.layers.norm("rms", value, full, name, flat, self.spec.norm_epsilon)
        g, size = self.g, space.values // space.norm_groups
        split: list[Dim] = [BATCH, SEQUENCE, space.norm_groups, size]
        parts = g.constant(f"shape.parts_{space.norm_groups}_{size}", np.asarray([0, 0, *split[2:]], np.int64))
        width = g.constant(f"shape.width_{space.values}", np.asarray([0, 0, space.values], np.int64))
        ones = g.constant(f"norm.ones_{size}", np.ones(size, np.float32))
        apart = g.op("Reshape", f"{name}/split_groups", [value, parts], split)
        epsilon = self.spec.norm_epsilon
        normed = g.op("RMSNormalization", f"{name}/groups", [apart, ones], split, epsilon=epsilon, axis=-1)
        joined = g.op("Reshape", f"{name}/join_groups", [normed, width], flat)
        return g.op("Mul", name, [joined, weight], flat)


def _channel_scales(space: StateSpace) -> np.ndarray | None:
    """Factors on what is convolved, float32 [channels]; None where all are 1."""
    if space.scales[1:4] == (1.0, 1.0, 1.0):
        return None
    return np.repeat(np.asarray(space.scales[1:4], np.float32), (space.values, space.states, space.states))
