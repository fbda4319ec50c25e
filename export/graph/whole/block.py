"""One transformer block of any family as ONNX nodes: attention, feed-forward part, and how the residuals join them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from export.contract.errors import InputError
from export.contract.formats.base import DOMAIN
from export.contract.operators.attention import AttentionLayout
from export.contract.operators.integers import SDR_ATTENTION, format_attributes
from export.contract.operators.sink_attention import SINK_ATTENTION
from export.graph.experts import ExpertLayers
from export.graph.gemma.altup import AltUpLayers
from export.graph.gemma.beside import feed_forward_beside
from export.graph.gemma.cut import cut_gates, with_laurel
from export.graph.gemma.per_layer import add_per_layer_input
from export.graph.gemma.shared_keys import attend_to_earlier
from export.graph.layers import BATCH, SEQUENCE, Layers
from export.graph.recurrent.convolution import short_convolution
from export.graph.recurrent.delta_net import DeltaNetLayers
from export.graph.recurrent.state_space import StateSpaceLayers
from export.graph.spec import BlockNames, ModelSpec
from export.graph.writer import Dim

TOTAL = "total_sequence_length"


@dataclass(frozen=True)
class Context:
    """What a block gets beside the hidden states: values of the graph."""

    mask: ir.Value | None  # bool, True where a query sees a key; None where nothing attends
    rotation: tuple[ir.Value, ir.Value] | None = None  # cos and sin [batch, sequence, rotated / 2]
    # Cached keys and values where the block attends, then its states; None: queries see the whole input.
    past: tuple[ir.Value, ...] | None = None
    earlier: tuple[ir.Value, ...] | None = None  # keys and values of an earlier layer, those of this call included
    query_rotation: tuple[ir.Value, ir.Value] | None = None  # of the queries, where it is another than that of the keys
    token_mask: ir.Value | None = None  # float32 [batch, sequence, 1], for what keeps a state
    per_layer: ir.Value | None = None  # the block's part of the embeddings for each layer


Mixer = Callable[[int, ir.Value, Context], tuple[ir.Value, tuple[ir.Value, ...]]]


class BlockBuilder:
    """Writes the blocks of one model."""

    def __init__(self, spec: ModelSpec, layers: Layers) -> None:
        self.spec, self.layers, self.g = spec, layers, layers.g
        self.experts, self.delta_nets = ExpertLayers(spec, layers), DeltaNetLayers(spec, layers)
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
        inner = self._feed_forward(layer, inner_input, hidden)
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
        inner = self._feed_forward(layer, self._norm(layer, names.mlp_norm, hidden), hidden)
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
            found.append(self._attention(layer, normed, replace(context, past=past[:2] if past else None)))
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

    def _attention(self, layer: int, normed: ir.Value, context: Context) -> tuple[ir.Value, tuple[ir.Value, ...]]:
        spec, at, heads = self.spec, f"/model/layers.{layer}/attention", self.spec.heads_of(layer)
        if context.earlier is not None:
            return self._over_earlier(layer, normed, context), ()
        normed = self.layers.scaled(normed, spec.attention_input_scale, f"{at}/scaled_input", spec.hidden_size)
        query, key, value, gate = self._query_key_value(layer, normed)
        if not spec.norm_after_rope:
            query, key = self._head_norms(layer, query, key)
        if context.rotation is not None:
            turn = context.query_rotation or context.rotation
            query = self._rotate(query, f"{at}/rotate_query", heads.heads, heads.head_dim, turn)
            key = self._rotate(key, f"{at}/rotate_key", heads.kv_heads, heads.head_dim, context.rotation)
        if spec.norm_after_rope:
            query, key = self._head_norms(layer, query, key)
        if spec.names_of_layer(layer).value_norm:
            value = self._norm_of_heads(f"{at}/value_norm", None, value, heads.kv_heads, heads.head_dim)
        out, cache = self._attended(layer, (query, key, value), context)
        width = heads.queries
        if gate is not None:
            shape: list[Dim] = [BATCH, SEQUENCE, width]
            share = self.layers.activate("sigmoid", gate, f"{at}/gate", shape)
            out = self.g.op("Mul", f"{at}/gated", [out, share], shape)
        output = spec.names_of_layer(layer).attention_output
        assert output is not None
        made = self._linear(layer, output, out, width, spec.hidden_size)
        made = self.layers.scaled(made, spec.attention_output_scale, f"{at}/scaled_output", spec.hidden_size)
        return made, cache

    def _over_earlier(self, layer: int, normed: ir.Value, context: Context) -> ir.Value:
        """What queries of this layer give over the keys and values of an earlier one."""
        spec, at, heads = self.spec, f"/model/layers.{layer}/attention", self.spec.heads_of(layer)
        names = spec.names_of_layer(layer)
        assert names.query and names.attention_output and context.mask is not None
        assert context.earlier is not None and context.query_rotation is None
        if self.layers.arithmetic.cache is not None:
            raise InputError(f"{self.layers.checkpoint.folder}: keys and values that layers share cannot be razored")
        query = self._linear(layer, names.query, normed, spec.hidden_size, heads.queries)
        query = self._head_norm(layer, names.query_norm, query, heads.heads)
        if context.rotation is not None:
            query = self._rotate(query, f"{at}/rotate_query", heads.heads, heads.head_dim, context.rotation)
        attributes = self._score_attributes(layer)
        out = attend_to_earlier(self.g, at, query, context.earlier, context.mask, heads, attributes)
        return self._linear(layer, names.attention_output, out, heads.queries, spec.hidden_size)

    def _score_attributes(self, layer: int) -> dict[str, float]:
        spec = self.spec
        scale = spec.attention_scale or 1 / math.sqrt(spec.heads_of(layer).head_dim)
        return {"scale": scale} | ({} if spec.attention_softcap is None else {"softcap": spec.attention_softcap})

    def _attended(
        self, layer: int, qkv: tuple[ir.Value, ...], context: Context
    ) -> tuple[ir.Value, tuple[ir.Value, ...]]:
        """What all heads give, float32 [batch, sequence, heads * head_dim], and keys and values for the cache."""
        spec, heads = self.spec, self.spec.heads_of(layer)
        shapes: list[list[Dim]] = [[BATCH, SEQUENCE, heads.queries]]
        if context.past is not None:
            shapes += [[BATCH, heads.kv_heads, TOTAL, heads.head_dim]] * 2
        attributes = self._score_attributes(layer)
        if self.layers.arithmetic.cache is not None and context.past is not None:
            out, *cache = self._razored_attention(layer, qkv, context, attributes)
            return out, tuple(cache)
        if spec.names_of_layer(layer).sinks is not None:
            out, *cache = self._sink_attention(layer, qkv, context, shapes)
            return out, tuple(cache)
        out, *cache = self.g.op(
            "Attention",
            f"/model/layers.{layer}/attention",
            [*qkv, context.mask, *(context.past or ())],
            shapes,
            attributes=attributes,
            q_num_heads=spec.heads,
            kv_num_heads=heads.kv_heads,
            is_causal=int(context.past is not None or spec.looks_back_only),
        )
        return out, tuple(cache)

    def _sink_attention(
        self, layer: int, qkv: tuple[ir.Value, ...], context: Context, shapes: list[list[Dim]]
    ) -> tuple[ir.Value, ...]:
        """Attention with a score of each head beside those of its keys; outputs as of _razored_attention."""
        spec, layers, names = self.spec, self.layers, self.spec.names_of_layer(layer)
        assert names.sinks is not None and context.past is not None and spec.attention_softcap is None
        name = spec.prefix(layer) + names.sinks
        sinks = layers.vector(name)
        if tuple(sinks.shape or ()) != (spec.heads,):
            raise InputError(f"{layers.checkpoint.folder}: {name} is {sinks.shape}, expected {[spec.heads]}")
        layers.has_sinks = True
        scale = spec.attention_scale or 1 / math.sqrt(spec.head_dim)
        outputs: tuple[ir.Value, ...] = self.g.op(
            SINK_ATTENTION, f"/model/layers.{layer}/attention", [*qkv, context.mask, *context.past, sinks], shapes,
            domain=DOMAIN, q_num_heads=spec.heads, kv_num_heads=spec.kv_heads, scale=scale,
        )  # fmt: skip
        return outputs

    def _razored_attention(
        self, layer: int, qkv: tuple[ir.Value, ...], context: Context, attributes: dict[str, float]
    ) -> tuple[ir.Value, ...]:
        """Attention over a razored cache: its output, and keys and values with the new tokens behind."""
        g, spec, layers, heads = self.g, self.spec, self.layers, self.spec.heads_of(layer)
        form = layers.arithmetic.cache
        assert form is not None and context.past is not None
        if spec.names_of_layer(layer).sinks is not None:
            raise InputError(f"{layers.checkpoint.folder}: attention with sinks has no razored cache")
        chosen: dict[str, Any] = {
            "q_num_heads": heads.heads, "kv_num_heads": heads.kv_heads, "scale": attributes["scale"],
            "softcap": attributes.get("softcap", 0.0), **format_attributes(form),
        }  # fmt: skip
        units = []
        for name in ("key_unit", "value_unit"):
            full = spec.prefix(layer) + name
            units.append(g.constant(full, layers.unit(full, heads.kv_heads)))
        row_bytes = AttentionLayout.of(chosen, heads.queries).row_bytes
        cached: list[Dim] = [BATCH, heads.kv_heads, TOTAL, row_bytes]
        outputs: tuple[tuple[str, list[Dim], ir.DataType], ...] = (
            ("output_0", [BATCH, SEQUENCE, heads.queries], ir.DataType.FLOAT),
            ("output_1", cached, ir.DataType.UINT8),
            ("output_2", cached, ir.DataType.UINT8),
        )
        inputs = [*qkv, context.mask, *context.past, *units]
        return g.typed_op(SDR_ATTENTION, f"/model/layers.{layer}/attention", inputs, outputs, DOMAIN, chosen)

    def _query_key_value(self, layer: int, normed: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value, ir.Value | None]:
        """Queries, keys and values, and what the heads' outputs are gated with where the family has that."""
        g, spec, names = self.g, self.spec, self.spec.names_of_layer(layer)
        at, heads = f"/model/layers.{layer}/attention", spec.heads_of(layer)
        q_width, kv_width = heads.queries, heads.keys
        if names.fused_qkv is None:
            assert names.query and names.key and (names.value or names.values_are_keys)
            read, columns = self._factored(layer, names.shared.query_key, names.shared.query_key_rank, normed)
            query, gate = self._gated_query(layer, names.query, read, columns)
            key = self._linear(layer, names.key, read, columns, kv_width)
            value = self._linear(layer, names.value, normed, spec.hidden_size, kv_width) if names.value else key
            return query, key, value, gate
        total = q_width + 2 * kv_width
        fused = self._linear(layer, names.fused_qkv, normed, spec.hidden_size, total)
        if spec.fused_qkv_by_head:
            by_head = np.arange(total, dtype=np.int64).reshape(spec.heads, 3, spec.head_dim)
            order = g.constant("attention.qkv_order", by_head.transpose(1, 0, 2).reshape(-1))
            fused = g.op("Gather", f"{at}/qkv_in_order", [fused, order], [BATCH, SEQUENCE, total], axis=2)
        sizes = g.constant("attention.qkv_widths", np.asarray([q_width, kv_width, kv_width], np.int64))
        shapes = [[BATCH, SEQUENCE, w] for w in (q_width, kv_width, kv_width)]
        query, key, value = g.op("Split", f"{at}/split_qkv", [fused, sizes], shapes, axis=-1)
        return query, key, value, None

    def _factored(self, layer: int, factor: str | None, rank: int, value: ir.Value) -> tuple[ir.Value, int]:
        """What two layers read, and its columns: the value, or what their shared factor makes of it."""
        if factor is None:
            return value, self.spec.hidden_size
        return self._linear(layer, factor, value, self.spec.hidden_size, rank), rank

    def _gated_query(self, layer: int, module: str, read: ir.Value, columns: int) -> tuple[ir.Value, ir.Value | None]:
        """Queries, and their gate where the layer gives each head both, one behind the other."""
        g, spec, at = self.g, self.spec, f"/model/layers.{layer}/attention"
        width = spec.heads_of(layer).queries
        if not spec.query_gate:
            return self._linear(layer, module, read, columns, width), None
        both = self._linear(layer, module, read, columns, 2 * width)
        by_head = np.arange(2 * width, dtype=np.int64).reshape(spec.heads, 2, spec.head_dim)
        order = g.constant("attention.query_order", by_head.transpose(1, 0, 2).reshape(-1))
        both = g.op("Gather", f"{at}/query_in_order", [both, order], [BATCH, SEQUENCE, 2 * width], axis=2)
        sizes = g.constant("attention.query_widths", np.asarray([width, width], np.int64))
        query, gate = g.op("Split", f"{at}/split_query", [both, sizes], [[BATCH, SEQUENCE, width]] * 2, axis=-1)
        return query, gate

    def _rotate(
        self, value: ir.Value, name: str, heads: int, head_dim: int, rotation: tuple[ir.Value, ir.Value]
    ) -> ir.Value:
        rotated = 2 * int(rotation[0].shape[-1])  # type: ignore[index, arg-type]
        chosen = {} if rotated == head_dim else {"rotary_embedding_dim": rotated}
        chosen |= {"interleaved": 1} if self.spec.rope_interleaved else {}
        shape: list[Dim] = [BATCH, SEQUENCE, heads * head_dim]
        return self.g.op("RotaryEmbedding", name, [value, *rotation], shape, attributes=chosen, num_heads=heads)

    def _head_norms(self, layer: int, query: ir.Value, key: ir.Value) -> tuple[ir.Value, ir.Value]:
        heads, names = self.spec.heads_of(layer), self.spec.names_of_layer(layer)
        normed = self._head_norm(layer, names.query_norm, query, heads.heads)
        return normed, self._head_norm(layer, names.key_norm, key, heads.kv_heads)

    def _head_norm(self, layer: int, module: str | None, value: ir.Value, heads: int) -> ir.Value:
        """RMSNorm on queries or keys [batch, sequence, heads * head_dim], over each head or over all of them."""
        if module is None:
            return value
        spec, head_dim = self.spec, self.spec.heads_of(layer).head_dim
        name, full = f"/model/layers.{layer}/{module}", self.spec.prefix(layer) + module
        if spec.norm_each_head:
            return self._norm_of_heads(name, full, value, heads, head_dim)
        shape: list[Dim] = [BATCH, SEQUENCE, heads * head_dim]
        return self.layers.norm("rms", value, full, name, shape, spec.norm_epsilon, spec.norm_offset)

    def _norm_of_heads(self, name: str, module: str | None, value: ir.Value, heads: int, head_dim: int) -> ir.Value:
        """RMSNorm over each head of [batch, sequence, heads * head_dim]; module: full name, None without weights."""
        g, spec, width = self.g, self.spec, heads * head_dim
        split: list[Dim] = [BATCH, SEQUENCE, heads, head_dim]
        by_head = g.constant(f"shape.heads_{heads}_{head_dim}", np.asarray([0, 0, heads, head_dim], np.int64))
        flat = g.constant(f"shape.width_{width}", np.asarray([0, 0, width], np.int64))
        parts = g.op("Reshape", f"{name}/split_heads", [value, by_head], split)
        if module is None:
            ones = g.constant(f"norm.ones_{head_dim}", np.ones(head_dim, np.float32))
            normed = g.op("RMSNormalization", name, [parts, ones], split, epsilon=spec.norm_epsilon, axis=-1)
        else:
            normed = self.layers.norm("rms", parts, module, name, split, spec.norm_epsilon, spec.norm_offset)
        out: ir.Value = g.op("Reshape", f"{name}/join_heads", [normed, flat], [BATCH, SEQUENCE, width])
        return out

    def _feed_forward(self, layer: int, value: ir.Value, stream: ir.Value) -> ir.Value:
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

    def _linear(self, layer: int, module: str, value: ir.Value, columns: int, rows: int) -> ir.Value:
        name = f"/model/layers.{layer}/{module.replace('.', '/')}"
        return self.layers.matmul(self.spec.prefix(layer) + module, value, name, columns, rows)
