"""Builds the ONNX graph of a causal decoder from a ModelSpec and a quantized checkpoint. One builder for all families.

The graph is built, never traced: standard operators of opset 23 plus ai.athena, inputs and outputs named as optimum and
onnxruntime-genai name them, node names that follow the Hugging Face module names.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from export.checkpoint import StoredTensors, TensorRecord
from export.contract import CODEBOOK_GATHER, CODEBOOK_MATMUL, DOMAIN, DOMAIN_VERSION, IR_VERSION, OPSET
from export.errors import InputError
from export.functions import function_bodies
from export.graph import Dim, GraphWriter
from export.spec import ModelSpec

BATCH, SEQUENCE, PAST, TOTAL = "batch_size", "sequence_length", "past_sequence_length", "total_sequence_length"


def build_decoder(spec: ModelSpec, checkpoint: StoredTensors, producer: str) -> ir.Model:
    """The complete model; weights are read lazily when it is saved.

    Raises InputError when the checkpoint lacks a tensor that the family needs or has it in another shape.
    """
    return _DecoderGraph(spec, checkpoint).build(producer)


class _DecoderGraph:
    """The values that all parts of one decoder graph share."""

    def __init__(self, spec: ModelSpec, checkpoint: StoredTensors) -> None:
        self.spec = spec
        self.checkpoint = checkpoint
        self.g = GraphWriter()
        self.decoded_scales: dict[str, ir.Value] = {}
        self.hidden_shape: list[Dim] = [BATCH, SEQUENCE, spec.hidden_size]

    def build(self, producer: str) -> ir.Model:
        g, spec = self.g, self.spec
        input_ids = g.input("input_ids", ir.DataType.INT64, [BATCH, SEQUENCE])
        attention_mask = g.input("attention_mask", ir.DataType.INT64, [BATCH, TOTAL])
        position_ids = g.input("position_ids", ir.DataType.INT64, [BATCH, SEQUENCE])
        cache_shape: list[Dim] = [BATCH, spec.kv_heads, PAST, spec.head_dim]
        past = [
            tuple(g.input(f"past_key_values.{i}.{kind}", ir.DataType.FLOAT, cache_shape) for kind in ("key", "value"))
            for i in range(spec.layers)
        ]
        self.rotation = self._rotation(position_ids)
        self.masks = self._masks(input_ids, attention_mask)
        hidden = self._embed(input_ids, position_ids)
        present = []
        for layer in range(spec.layers):
            hidden, keys, values = self._block(layer, hidden, *past[layer])
            present += [(keys, f"present.{layer}.key"), (values, f"present.{layer}.value")]
        hidden = self._norm(hidden, self.spec.final_norm, "/model/norm")
        g.output(self._head(hidden), "logits")
        for value, name in present:
            g.output(value, name)
        functions = [ir.serde.deserialize_function(f) for f in function_bodies()]
        return g.model(spec.model_type, {"": OPSET, DOMAIN: DOMAIN_VERSION}, IR_VERSION, functions, producer)

    def _rotation(self, position_ids: ir.Value) -> tuple[ir.Value, ir.Value] | None:
        """cos and sin of every position, float [batch, sequence, rotated / 2], computed in the graph: no table."""
        rope, g = self.spec.rope, self.g
        if rope is None:
            return None
        half = len(rope.inverse_frequencies)
        shape: list[Dim] = [BATCH, SEQUENCE, half]
        frequencies = g.constant("rope.inverse_frequencies", np.asarray(rope.inverse_frequencies, np.float32))
        last = g.constant("axis.last", np.asarray([-1], np.int64))
        positions = g.op("Cast", "/model/rope/positions", [position_ids], [BATCH, SEQUENCE], to=ir.DataType.FLOAT)
        column = g.op("Unsqueeze", "/model/rope/column", [positions, last], [BATCH, SEQUENCE, 1])
        angle = g.op("Mul", "/model/rope/angle", [column, frequencies], shape)
        pair = tuple(g.op(kind, f"/model/rope/{kind.lower()}", [angle], shape) for kind in ("Cos", "Sin"))
        if rope.attention_factor != 1.0:
            factor = g.constant("rope.attention_factor", np.asarray(rope.attention_factor, np.float32))
            pair = tuple(g.op("Mul", f"/model/rope/{n}_scaled", [v, factor], shape) for n, v in zip("cs", pair))
        return pair  # type: ignore[return-value]

    def _masks(self, input_ids: ir.Value, attention_mask: ir.Value) -> dict[int | None, ir.Value]:
        """Per window width: which keys a query may see, bool [batch, 1, sequence, total]. True means visible.

        onnxruntime wants the query dimension in full, so the causal part is spelled out beside `is_causal`.
        """
        g, boolean, long, at = self.g, ir.DataType.BOOL, ir.DataType.INT64, "/model/mask"
        zero, one = (g.constant(n, np.asarray(v, np.int64)) for n, v in (("zero", 0), ("one", 1)))
        first, second = (g.constant(f"axis.{n}", np.asarray([v], np.int64)) for n, v in (("first", 0), ("second", 1)))
        axes = g.constant("axis.heads_and_queries", np.asarray([1, 2], np.int64))
        keep = g.op("Cast", f"{at}/not_padding", [attention_mask], [BATCH, TOTAL], boolean, to=boolean)
        visible = g.op("Unsqueeze", f"{at}/visible", [keep, axes], [BATCH, 1, 1, TOTAL], boolean)
        total_1d = g.op("Shape", f"{at}/total_1d", [attention_mask], [1], long, start=1, end=2)
        total = g.op("Squeeze", f"{at}/total", [total_1d, first], [], long)
        sequence_1d = g.op("Shape", f"{at}/sequence_1d", [input_ids], [1], long, start=1, end=2)
        sequence = g.op("Squeeze", f"{at}/sequence", [sequence_1d, first], [], long)
        past = g.op("Sub", f"{at}/past", [total, sequence], [], long)
        keys = g.op("Range", f"{at}/keys", [zero, total, one], [TOTAL], long)
        queries = g.op("Range", f"{at}/queries", [past, total, one], [SEQUENCE], long)
        column = g.op("Unsqueeze", f"{at}/column", [queries, second], [SEQUENCE, 1], long)
        grid: list[Dim] = [SEQUENCE, TOTAL]
        causal = g.op("LessOrEqual", f"{at}/causal", [keys, column], grid, boolean)
        widths = {self.spec.window(i) for i in range(self.spec.layers)}
        masks: dict[int | None, ir.Value] = {}
        for width in sorted(widths, key=lambda w: w or 0):
            allowed, name = causal, f"{at}/{'all' if width is None else f'window_{width}'}"
            if width is not None:
                limit = g.constant(f"mask.window_{width}", np.asarray(width, np.int64))
                distance = g.op("Sub", f"{name}/distance", [column, keys], grid, long)
                near = g.op("Less", f"{name}/near", [distance, limit], grid, boolean)
                allowed = g.op("And", f"{name}/allowed", [causal, near], grid, boolean)
            masks[width] = g.op("And", name, [visible, allowed], [BATCH, 1, SEQUENCE, TOTAL], boolean)
        return masks

    def _embed(self, input_ids: ir.Value, position_ids: ir.Value) -> ir.Value:
        hidden = self._lookup(self.spec.embedding, input_ids, "/model/embed_tokens", self.spec.vocab_size)
        hidden = self._scaled(hidden, self.spec.embedding_scale, "/model/embed_scaled", self.hidden_shape)
        if self.spec.position_embedding is None:
            return hidden
        places = self._lookup(
            self.spec.position_embedding, position_ids, "/model/embed_positions", self.spec.context_length
        )
        return self.g.op("Add", "/model/embed", [hidden, places], self.hidden_shape)

    def _lookup(self, module: str, ids: ir.Value, name: str, rows: int) -> ir.Value:
        inputs, record = self._matrix(module, (rows, self.spec.hidden_size))
        if record.scheme == "codebook":
            attributes = record.layout().attributes()
            return self.g.op(
                CODEBOOK_GATHER, name, [ids, *inputs], self.hidden_shape, domain=DOMAIN, attributes=attributes
            )
        gathered = self.g.op(
            "Gather", f"{name}/rows", [inputs[0], ids], self.hidden_shape, inputs[0].dtype or ir.DataType.FLOAT, axis=0
        )
        return self._as_float(gathered, name, self.hidden_shape)

    def _block(self, layer: int, hidden: ir.Value, past_key: ir.Value, past_value: ir.Value) -> tuple[ir.Value, ...]:
        g, names = self.g, self.spec.block
        at = f"/model/layers.{layer}"
        normed = self._block_norm(layer, names.attention_norm, hidden)
        attended, keys, values = self._attention(layer, normed, past_key, past_value)
        attended = self._block_norm(layer, names.attention_post_norm, attended)
        attended = self._scaled(attended, self.spec.residual_scale, f"{at}/attention_scaled", self.hidden_shape)
        hidden = g.op("Add", f"{at}/attention_residual", [hidden, attended], self.hidden_shape)
        inner = self._mlp(layer, self._block_norm(layer, names.mlp_norm, hidden))
        inner = self._block_norm(layer, names.mlp_post_norm, inner)
        inner = self._scaled(inner, self.spec.residual_scale, f"{at}/mlp_scaled", self.hidden_shape)
        hidden = g.op("Add", f"{at}/mlp_residual", [hidden, inner], self.hidden_shape)
        return hidden, keys, values

    def _block_norm(self, layer: int, module: str | None, value: ir.Value) -> ir.Value:
        """A norm over the hidden size; the value as it is where the family has none here."""
        if module is None:
            return value
        return self._norm(value, self.spec.prefix(layer) + module, f"/model/layers.{layer}/{module}")

    def _scaled(self, value: ir.Value, factor: float, name: str, shape: list[Dim]) -> ir.Value:
        if factor == 1.0:
            return value
        constant = self.g.constant(f"scale.{factor!r}", np.asarray(factor, np.float32))
        return self.g.op("Mul", name, [value, constant], shape)

    def _attention(
        self, layer: int, normed: ir.Value, past_key: ir.Value, past_value: ir.Value
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        g, spec, names = self.g, self.spec, self.spec.block
        at = f"/model/layers.{layer}/attention"
        q_width, kv_width = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
        if names.fused_qkv is not None:
            fused = self._linear(layer, names.fused_qkv, normed, spec.hidden_size, q_width + 2 * kv_width)
            sizes = g.constant("attention.qkv_widths", np.asarray([q_width, kv_width, kv_width], np.int64))
            shapes = [[BATCH, SEQUENCE, w] for w in (q_width, kv_width, kv_width)]
            query, key, value = g.op("Split", f"{at}/split_qkv", [fused, sizes], shapes, axis=-1)
        else:
            assert names.query and names.key and names.value
            query = self._linear(layer, names.query, normed, spec.hidden_size, q_width)
            key = self._linear(layer, names.key, normed, spec.hidden_size, kv_width)
            value = self._linear(layer, names.value, normed, spec.hidden_size, kv_width)
        query = self._head_norm(layer, names.query_norm, query, spec.heads)
        key = self._head_norm(layer, names.key_norm, key, spec.kv_heads)
        if self.rotation is not None and layer not in spec.layers_without_rope:
            query = self._rotate(query, f"{at}/rotate_query", spec.heads)
            key = self._rotate(key, f"{at}/rotate_key", spec.kv_heads)
        mask = self.masks[spec.window(layer)]
        cache: list[Dim] = [BATCH, spec.kv_heads, TOTAL, spec.head_dim]
        mixed, keys, values = g.op(
            "Attention",
            at,
            [query, key, value, mask, past_key, past_value],
            [[BATCH, SEQUENCE, q_width], cache, cache],
            q_num_heads=spec.heads,
            kv_num_heads=spec.kv_heads,
            is_causal=1,
            scale=spec.attention_scale or 1 / math.sqrt(spec.head_dim),
        )
        return self._linear(layer, names.attention_output, mixed, q_width, spec.hidden_size), keys, values

    def _rotate(self, value: ir.Value, name: str, heads: int) -> ir.Value:
        assert self.rotation is not None
        shape: list[Dim] = [BATCH, SEQUENCE, heads * self.spec.head_dim]
        return self.g.op("RotaryEmbedding", name, [value, *self.rotation], shape, num_heads=heads)

    def _head_norm(self, layer: int, module: str | None, value: ir.Value, heads: int) -> ir.Value:
        """RMSNorm on queries or keys [batch, sequence, heads * head_dim], over each head or over all of them."""
        if module is None:
            return value
        g, width = self.g, heads * self.spec.head_dim
        name = f"/model/layers.{layer}/{module}"
        shape: list[Dim] = [BATCH, SEQUENCE, width]
        scale = self._vector(f"{self.spec.prefix(layer)}{module}.weight")
        epsilon = self.spec.norm_epsilon
        if not self.spec.norm_each_head:
            return g.op("RMSNormalization", name, [value, scale], shape, epsilon=epsilon, axis=-1)
        split: list[Dim] = [BATCH, SEQUENCE, heads, self.spec.head_dim]
        by_head = g.constant(f"shape.heads_{heads}", np.asarray([0, 0, heads, self.spec.head_dim], np.int64))
        flat = g.constant(f"shape.width_{width}", np.asarray([0, 0, width], np.int64))
        parts = g.op("Reshape", f"{name}/split_heads", [value, by_head], split)
        normed = g.op("RMSNormalization", name, [parts, scale], split, epsilon=epsilon, axis=-1)
        return g.op("Reshape", f"{name}/join_heads", [normed, flat], shape)

    def _mlp(self, layer: int, normed: ir.Value) -> ir.Value:
        g, spec, names = self.g, self.spec, self.spec.block
        at = f"/model/layers.{layer}/mlp"
        shape: list[Dim] = [BATCH, SEQUENCE, spec.feed_forward]
        up = self._linear(layer, names.up, normed, spec.hidden_size, spec.feed_forward)
        if names.gate is None:
            inner = self._activate(up, f"{at}/activation", shape)
        else:
            gate = self._linear(layer, names.gate, normed, spec.hidden_size, spec.feed_forward)
            inner = g.op("Mul", f"{at}/gated", [self._activate(gate, f"{at}/activation", shape), up], shape)
        return self._linear(layer, names.down, inner, spec.feed_forward, spec.hidden_size)

    def _activate(self, value: ir.Value, name: str, shape: list[Dim]) -> ir.Value:
        g, kind = self.g, self.spec.activation
        if kind == "silu":
            gate = g.op("Sigmoid", f"{name}/sigmoid", [value], shape)
            return g.op("Mul", name, [value, gate], shape)
        if kind == "relu":
            return g.op("Relu", name, [value], shape)
        return g.op("Gelu", name, [value], shape, approximate="tanh" if kind == "gelu_tanh" else "none")

    def _head(self, hidden: ir.Value) -> ir.Value:
        module = self.spec.embedding if self.spec.tied_head else self.spec.head
        logits = self._matmul(module, hidden, "/lm_head", self.spec.hidden_size, self.spec.vocab_size)
        shape: list[Dim] = [BATCH, SEQUENCE, self.spec.vocab_size]
        return self._scaled(logits, self.spec.logit_scale, "/lm_head_scaled", shape)

    def _norm(self, value: ir.Value, module: str, name: str) -> ir.Value:
        scale = self._vector(f"{module}.weight")
        if self.spec.norm == "rms":
            inputs, op_type = [value, scale], "RMSNormalization"
        else:
            inputs, op_type = [value, scale, self._vector(f"{module}.bias")], "LayerNormalization"
        return self.g.op(op_type, name, inputs, self.hidden_shape, epsilon=self.spec.norm_epsilon, axis=-1)

    def _linear(self, layer: int, module: str, value: ir.Value, columns: int, rows: int) -> ir.Value:
        name = f"/model/layers.{layer}/{module.replace('.', '/')}"
        return self._matmul(self.spec.prefix(layer) + module, value, name, columns, rows)

    def _matmul(self, module: str, value: ir.Value, name: str, columns: int, rows: int) -> ir.Value:
        """value @ W^T, plus the low-rank residual and the bias where the checkpoint has them."""
        g = self.g
        shape: list[Dim] = [BATCH, SEQUENCE, rows]
        inputs, record = self._matrix(module, (rows, columns))
        if record.scheme == "codebook":
            attributes = record.layout().attributes()
            out = g.op(CODEBOOK_MATMUL, name, [value, *inputs], shape, domain=DOMAIN, attributes=attributes)
        else:
            weight = self._as_float(inputs[0], f"{name}/weight", [rows, columns])
            transposed = g.op("Transpose", f"{name}/transpose", [weight], [columns, rows], perm=[1, 0])
            out = g.op("MatMul", name, [value, transposed], shape)
        if record.rank:
            out = self._add_low_rank(module, record.rank, value, out, name, columns, rows)
        if self.checkpoint.has(f"{module}.bias"):
            out = g.op("Add", f"{name}/add_bias", [out, self._vector(f"{module}.bias")], shape)
        return out

    def _add_low_rank(
        self, module: str, rank: int, value: ir.Value, out: ir.Value, name: str, columns: int, rows: int
    ) -> ir.Value:
        g = self.g
        for part, shape in (("lowrank_a", [rank, columns]), ("lowrank_b", [rows, rank])):
            stored = self._stored(module, f".{part}", np.float16, shape)
            factor = self._as_float(stored, f"{name}/{part}", shape)
            transposed = g.op("Transpose", f"{name}/{part}_transpose", [factor], shape[::-1], perm=[1, 0])
            value = g.op("MatMul", f"{name}/{part}_matmul", [value, transposed], [BATCH, SEQUENCE, shape[0]])
        return g.op("Add", f"{name}/add_lowrank", [out, value], [BATCH, SEQUENCE, rows])

    def _matrix(self, module: str, shape: tuple[int, int]):  # type: ignore[no-untyped-def]
        """Initializers of a stored matrix and its record."""
        if not self.checkpoint.has(module):
            raise InputError(f"{self.checkpoint.folder}: the quantized checkpoint has no tensor {module}")
        record = self.checkpoint.records[module]
        if record.shape != shape:
            raise InputError(f"{self.checkpoint.folder}: {module} is {list(record.shape)}, expected {list(shape)}")
        if record.scheme != "codebook":
            return [self._stored(module, ".weight", record.scheme, shape)], record
        layout = record.layout()
        parts = [
            self._stored(module, ".codes", np.uint8, layout.codes_shape),
            self._stored(module, ".codebook", np.int8, layout.codebook_shape),
            self._scale(module, record),
        ]
        return parts, record

    def _scale(self, module: str, record: TensorRecord) -> ir.Value:
        """The scales [N, G]: stored as floats, or decoded once from codes by a lookup of all their rows."""
        if record.scale_bits is None:
            return self._stored(module, ".scale", record.scale_dtype, record.layout().scale_shape)
        if module not in self.decoded_scales:
            layout, name = record.scale_layout(), f"/{module.replace('.', '/')}/scale"
            groups, rows = layout.N, layout.K
            ids = self.g.constant(f"scale.groups_{groups}", np.arange(groups, dtype=np.int64))
            inputs = [
                self._stored(module, ".scale.codes", np.uint8, layout.codes_shape),
                self._stored(module, ".scale.codebook", np.int8, layout.codebook_shape),
                self._stored(module, ".scale.scale", record.scale_dtype, layout.scale_shape),
            ]
            attributes = layout.attributes()
            by_group = self.g.op(
                CODEBOOK_GATHER, name, [ids, *inputs], [groups, rows], domain=DOMAIN, attributes=attributes
            )
            self.decoded_scales[module] = self.g.op(
                "Transpose", f"{name}/transpose", [by_group], [rows, groups], perm=[1, 0]
            )
        return self.decoded_scales[module]

    def _stored(self, module: str, suffix: str, dtype, shape) -> ir.Value:  # type: ignore[no-untyped-def]
        return self.g.lazy(module + suffix, dtype, shape, lambda: self.checkpoint.tensor(module, suffix))

    def _vector(self, name: str) -> ir.Value:
        """A norm weight or bias, float32."""
        if not self.checkpoint.has(name):
            raise InputError(f"{self.checkpoint.folder}: the quantized checkpoint has no tensor {name}")
        record = self.checkpoint.records[name]
        return self.g.lazy(name, np.float32, record.shape, lambda: self.checkpoint.tensor(name, ""))

    def _as_float(self, value: ir.Value, name: str, shape) -> ir.Value:  # type: ignore[no-untyped-def]
        if value.dtype == ir.DataType.FLOAT:
            return value
        return self.g.op("Cast", f"{name}/float", [value], shape, to=ir.DataType.FLOAT)
