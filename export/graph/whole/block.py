"""One transformer block of any family as ONNX nodes: attention, feed-forward part, and how the residuals join them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import onnx_ir as ir

from export.contract.errors import InputError
from export.graph.gemma.altup import AltUpLayers
from export.graph.gemma.cut import with_laurel
from export.graph.gemma.per_layer import add_per_layer_input
from export.graph.layers import BATCH, SEQUENCE, Layers
from export.graph.recurrent.convolution import short_convolution
from export.graph.recurrent.delta_net import DeltaNetLayers
from export.graph.recurrent.state_space import StateSpaceLayers
from export.graph.spec import BlockNames, ModelSpec
from export.graph.whole.attention import AttentionLayers
from export.graph.whole.context import Context
from export.graph.whole.feed_forward import FeedForwardLayers
from export.graph.whole.linear import linear
from export.graph.writer import Dim

Mixer = Callable[[int, ir.Value, Context], tuple[ir.Value, tuple[ir.Value, ...]]]


class BlockBuilder:
    """Writes the blocks of one model."""

    def __init__(self, spec: ModelSpec, layers: Layers) -> None:
        self.spec, self.layers, self.g = spec, layers, layers.g
        self._linear = partial(linear, layers, spec)
        self.attention, self.feed_forward = AttentionLayers(spec, layers), FeedForwardLayers(spec, layers)
        self.delta_nets = DeltaNetLayers(spec, layers)
        self.altup = AltUpLayers(spec, layers) if spec.altup is not None else None
        self.state_spaces = StateSpaceLayers(spec, layers)
        self.hidden_shape: list[Dim] = [BATCH, SEQUENCE, spec.hidden_size]

    def block(self, layer: int, hidden: ir.Value, context: Context) -> tuple[ir.Value, tuple[ir.Value, ...]]:
        """Output of block `layer`, and its keys and values for the cache, or its state (none without a past)."""
        names, width = self.spec.names_of_layer(layer), self.spec.hidden_size
        at = f"/model/layers.{layer}"
        if self.altup is not None:
            return self._corrected(self.altup, layer, hidden, context)
        first = layer not in self.spec.layers_without_attention_norm
        normed = self._norm(layer, names.attention_norm if first else None, hidden)
        inner_input = None
        if self.spec.parallel_residual:
            inner_input = normed if names.mlp_norm is None else self._norm(layer, names.mlp_norm, hidden)
        attended, cache = self._mixed(layer, normed, context)
        if attended is not None:
            attended = self._norm(layer, names.attention_post_norm, attended)
            attended = self.layers.scaled(attended, self.spec.residual_scale, f"{at}/attention_scaled", width)
            hidden = self.g.op("Add", f"{at}/attention_residual", [hidden, attended], self.hidden_shape)
            hidden = self._norm(layer, names.attention_sum_norm, hidden)
        if names.down is None:
            return hidden, cache
        if inner_input is None:
            inner_input = self._norm(layer, names.mlp_norm, hidden)
        inner = self.feed_forward.write(layer, inner_input, hidden)
        inner = self.layers.scaled(inner, self.spec.feed_forward_scale, f"{at}/mlp/scaled_output", width)
        inner = self._norm(layer, names.mlp_post_norm, inner)
        inner = self.layers.scaled(inner, self.spec.residual_scale, f"{at}/mlp_scaled", width)
        hidden = self.g.op("Add", f"{at}/mlp_residual", [hidden, inner], self.hidden_shape)
        hidden = self._norm(layer, names.mlp_sum_norm, hidden)
        if context.per_layer is not None:
            hidden = add_per_layer_input(self.layers, self.spec, layer, hidden, context.per_layer)
        return self._multiplied(layer, hidden), cache

    def _corrected(
        self, altup: AltUpLayers, layer: int, streams: ir.Value, context: Context
    ) -> tuple[ir.Value, tuple[ir.Value, ...]]:
        """All streams behind a block that computes with one of them; streams: [batch, sequence, streams, hidden]."""
        names, g, at = self.spec.names_of_layer(layer), self.g, f"/model/layers.{layer}"
        assert context.per_layer is not None
        predicted, active = altup.predict(layer, streams)
        normed = self._norm(layer, names.attention_norm, active)
        laurel = with_laurel(self.layers, self.spec, layer, normed)
        attended, cache = self._mixed(layer, normed, context)
        assert attended is not None
        attended = self._norm(layer, names.attention_post_norm, attended)
        hidden = g.op("Add", f"{at}/attention_residual", [active, attended], self.hidden_shape)
        hidden = g.op("Add", f"{at}/laurel_residual", [hidden, laurel], self.hidden_shape)
        hidden = self.layers.scaled(hidden, 2**-0.5, f"{at}/laurel_scaled", self.spec.hidden_size)
        inner = self.feed_forward.write(layer, self._norm(layer, names.mlp_norm, hidden), hidden)
        inner = self._norm(layer, names.mlp_post_norm, inner)
        made = g.op("Add", f"{at}/mlp_residual", [hidden, inner], self.hidden_shape)
        return altup.correct(layer, predicted, made, context.per_layer), cache

    def _multiplied(self, layer: int, hidden: ir.Value) -> ir.Value:
        """What leaves a block times its factor, where it has one."""
        factor = self.spec.names_of_layer(layer).factor
        if factor is None:
            return hidden
        vector = self.layers.vector(self.spec.prefix(layer) + factor)
        if tuple(vector.shape or ()) != (1,):
            raise InputError(f"{self.layers.checkpoint.folder}: {vector.name} is {vector.shape}, expected [1]")
        out: ir.Value = self.g.op("Mul", f"/model/layers.{layer}/factor", [hidden, vector], self.hidden_shape)
        return out

    def _mixed(self, layer: int, normed: ir.Value, context: Context) -> tuple[ir.Value | None, tuple[ir.Value, ...]]:
        """What attention and what stands in its place or beside it give, added up, None for a block with neither."""
        names, past = self.spec.names_of_layer(layer), context.past
        found: list[tuple[ir.Value, tuple[ir.Value, ...]]] = []
        if names.attends:
            found.append(self.attention.attend(layer, normed, replace(context, past=past[:2] if past else None)))
            past = past[2:] if past else None
        for mix, there in self._recurrent(names):
            if there:
                found.append(mix(layer, normed, replace(context, past=past)))
        if not found:
            return None, ()
        total = found[0][0]
        for value, _ in found[1:]:
            total = self.g.op("Add", f"/model/layers.{layer}/mixed", [total, value], self.hidden_shape)
        return total, tuple(value for _, cache in found for value in cache)

    def _recurrent(self, names: BlockNames) -> tuple[tuple[Mixer, bool], ...]:
        return (
            (self._convolution, names.convolution is not None),
            (self._delta_net, names.delta_net is not None),
            (self._state_space, names.state_space is not None),
        )

    def _norm(self, layer: int, module: str | None, value: ir.Value) -> ir.Value:
        """A norm over the hidden size; the value as it is where the family has none here."""
        if module is None:
            return value
        name, full = f"/model/layers.{layer}/{module}", self.spec.prefix(layer) + module
        spec = self.spec
        return self.layers.norm(
            spec.norm, value, full, name, self.hidden_shape, spec.norm_epsilon, offset=spec.norm_offset
        )

    def _convolution(self, layer: int, normed: ir.Value, context: Context) -> tuple[ir.Value, tuple[ir.Value, ...]]:
        spec = self.spec
        assert context.past is not None and context.token_mask is not None
        out, state = short_convolution(self.layers, spec, layer, normed, context.token_mask, context.past[0])
        output = spec.names_of_layer(layer).attention_output
        assert output is not None
        return self._linear(layer, output, out, spec.hidden_size, spec.hidden_size), (state,)

    def _delta_net(self, layer: int, normed: ir.Value, context: Context) -> tuple[ir.Value, tuple[ir.Value, ...]]:
        names = self.spec.names_of_layer(layer)
        assert context.past is not None and context.token_mask is not None and names.delta_net is not None
        out, states = self.delta_nets.mix(layer, normed, context.token_mask, context.past)
        width = names.delta_net.values
        assert names.attention_output is not None
        return self._linear(layer, names.attention_output, out, width, self.spec.hidden_size), states

    def _state_space(self, layer: int, normed: ir.Value, context: Context) -> tuple[ir.Value, tuple[ir.Value, ...]]:
        assert context.past is not None and context.token_mask is not None
        return self.state_spaces.mix(layer, normed, context.token_mask, context.past)
