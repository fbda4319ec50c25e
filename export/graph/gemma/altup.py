"""AltUp: several hidden states of every token, predicted before a block and corrected behind it (Gemma 3n).

Baykal et al., "Alternating Updates for Efficient Transformers", NeurIPS 2023. The states of a token lie together,
float32 [batch, sequence, streams, hidden_size].
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from export.contract.errors import InputError
from export.graph.gemma.per_layer import per_layer_part
from export.graph.layers import BATCH, SEQUENCE, Layers
from export.graph.parts import AltUp
from export.graph.spec import ModelSpec
from export.graph.writer import Dim

_SMALLEST = 1e-5  # mean square that a stream is divided by, at least


class AltUpLayers:
    """Writes what stands around the blocks of one model."""

    def __init__(self, spec: ModelSpec, layers: Layers) -> None:
        assert spec.altup is not None
        self.spec, self.layers, self.g = spec, layers, layers.g
        self.altup: AltUp = spec.altup
        n, hidden = self.altup.streams, spec.hidden_size
        self._one: list[Dim] = [BATCH, SEQUENCE, hidden]
        self._all: list[Dim] = [BATCH, SEQUENCE, n, hidden]

    def begin(self, hidden: ir.Value) -> ir.Value:
        """All streams of the tokens' embeddings [batch, sequence, hidden_size]."""
        streams, size = [hidden], self._size(hidden, "/model/altup/size")
        for number, module in enumerate(self.altup.projections, 1):
            at = f"/model/altup/projection.{number}"
            made = self.layers.matmul(module, hidden, at, self.spec.hidden_size, self.spec.hidden_size)
            streams.append(self._as_large(made, size, at))
        return self._together(streams, "/model/altup/streams")

    def end(self, streams: ir.Value) -> ir.Value:
        """Their mean behind the last block, [batch, sequence, hidden_size]."""
        first, parts = self._stream(streams, 0, "/model/altup/first"), []
        size = self._size(first, "/model/altup/last_size")
        for number, module in enumerate(self.altup.unembeddings, 1):
            at = f"/model/altup/unembedding.{number}"
            own = self._stream(streams, number, f"{at}/stream")
            made = self.layers.matmul(module, own, at, self.spec.hidden_size, self.spec.hidden_size)
            parts.append(self._as_large(made, size, at))
        total = first
        for number, part in enumerate(parts, 1):
            total = self.g.op("Add", f"/model/altup/sum.{number}", [total, part], self._one)
        return self.layers.scaled(total, 1 / self.altup.streams, "/model/altup/mean", self.spec.hidden_size)

    def predict(self, layer: int, streams: ir.Value) -> tuple[ir.Value, ir.Value]:
        """What the block is expected to make of all streams, and that of the active one."""
        g, n, at = self.g, self.altup.streams, f"/model/layers.{layer}/altup/predict"
        active = self._stream(streams, self.altup.active, f"{at}/active")
        modalities = self._modalities(layer, active, at)
        flat = self._product(layer, self.altup.prediction, modalities, (n * n, n), at)
        square = g.constant(f"shape.altup_{n}", np.asarray([0, 0, n, n], np.int64))
        coefficients = g.op("Reshape", f"{at}/square", [flat, square], [BATCH, SEQUENCE, n, n])
        mixed = g.op("MatMul", f"{at}/mixed", [coefficients, streams], self._all)
        predicted = g.op("Add", f"{at}/sum", [mixed, streams], self._all)
        return predicted, self._stream(predicted, self.altup.active, f"{at}/own")

    def correct(self, layer: int, predicted: ir.Value, made: ir.Value, own: ir.Value) -> ir.Value:
        """All streams behind the block: predicted, the block's output, and its part of the embeddings for layers."""
        g, n, at = self.g, self.altup.streams, f"/model/layers.{layer}/altup/correct"
        modalities = self._modalities(layer, made, at)
        shares = self._product(layer, self.altup.correction, modalities, (n, n), at)
        one = g.constant("altup.one", np.asarray(1.0, np.float32))
        shares = g.op("Add", f"{at}/shares", [shares, one], [BATCH, SEQUENCE, n])
        expected = self._stream(predicted, self.altup.active, f"{at}/expected")
        news = g.op("Sub", f"{at}/news", [made, expected], self._one)
        spread = self._outer(shares, news, f"{at}/spread")
        corrected = g.op("Add", f"{at}/sum", [predicted, spread], self._all)
        first = self._stream(corrected, self.altup.active, f"{at}/active")
        if self.altup.scale is not None:
            name = self.spec.prefix(layer) + self.altup.scale
            first = g.op("Mul", f"{at}/scaled", [first, self._parameter(name, (self.spec.hidden_size,))], self._one)
        part = per_layer_part(self.layers, self.spec, layer, first, own)
        behind = g.constant("altup.behind_the_first", np.asarray([[[0.0] + [1.0] * (n - 1)]], np.float32))
        more = self._outer(behind, part, f"{at}/per_layer")
        found: ir.Value = g.op("Add", f"/model/layers.{layer}/altup/streams", [corrected, more], self._all)
        return found

    def _outer(self, shares: ir.Value, value: ir.Value, at: str) -> ir.Value:
        """Each stream's share [batch, sequence, streams] of a value [batch, sequence, hidden_size]."""
        g, n = self.g, self.altup.streams
        last, third = (g.constant(f"axis.{k}", np.asarray([v], np.int64)) for k, v in (("last", -1), ("third", 2)))
        column = g.op("Unsqueeze", f"{at}/column", [shares, last], [BATCH, SEQUENCE, n, 1])
        row = g.op("Unsqueeze", f"{at}/row", [value, third], [BATCH, SEQUENCE, 1, self.spec.hidden_size])
        out: ir.Value = g.op("Mul", at, [column, row], self._all)
        return out

    def _modalities(self, layer: int, value: ir.Value, at: str) -> ir.Value:
        """tanh(router(norm(value) / hidden_size)), float32 [batch, sequence, streams]."""
        spec, names, n = self.spec, self.altup, self.altup.streams
        module = spec.prefix(layer) + names.router_norm
        normed = self.layers.norm(
            "rms", value, module, f"{at}/router_norm", self._one, spec.norm_epsilon, spec.norm_offset
        )
        normed = self.layers.scaled(normed, 1 / spec.hidden_size, f"{at}/router_input", spec.hidden_size)
        routed = self._product(layer, names.router, normed, (n, spec.hidden_size), at)
        return self.layers.activate("tanh", routed, f"{at}/modalities", [BATCH, SEQUENCE, n])

    def _product(self, layer: int, module: str, value: ir.Value, shape: tuple[int, int], at: str) -> ir.Value:
        """value @ W^T, W float32 of this shape [rows, columns]."""
        matrix = self._parameter(f"{self.spec.prefix(layer)}{module}.weight", shape)
        name = f"{at}/{module.rpartition('.')[2]}"
        turned = self.g.op("Transpose", f"{name}/transpose", [matrix], list(shape[::-1]), perm=[1, 0])
        out: ir.Value = self.g.op("MatMul", name, [value, turned], [BATCH, SEQUENCE, shape[0]])
        return out

    def _parameter(self, name: str, shape: tuple[int, ...]) -> ir.Value:
        found = self.layers.vector(name)
        if tuple(found.shape or ()) != shape:
            raise InputError(f"{self.layers.checkpoint.folder}: {name} is {found.shape}, expected {list(shape)}")
        return found

    def _stream(self, streams: ir.Value, number: int, name: str) -> ir.Value:
        index = self.g.constant(f"altup.stream_{number}", np.asarray(number, np.int64))
        out: ir.Value = self.g.op("Gather", name, [streams, index], self._one, axis=2)
        return out

    def _together(self, streams: list[ir.Value], name: str) -> ir.Value:
        third = self.g.constant("axis.third", np.asarray([2], np.int64))
        rows: list[Dim] = [BATCH, SEQUENCE, 1, self.spec.hidden_size]
        parts = [self.g.op("Unsqueeze", f"{name}/{i}", [s, third], rows) for i, s in enumerate(streams)]
        out: ir.Value = self.g.op("Concat", name, parts, self._all, axis=2)
        return out

    def _size(self, value: ir.Value, name: str) -> ir.Value:
        """Root mean square of each token, [batch, sequence, 1]."""
        last = self.g.constant("axis.last", np.asarray([-1], np.int64))
        length = self.g.op("ReduceL2", f"{name}/length", [value, last], [BATCH, SEQUENCE, 1], keepdims=1)
        return self.layers.scaled(length, self.spec.hidden_size**-0.5, name, 1)

    def _as_large(self, value: ir.Value, size: ir.Value, at: str) -> ir.Value:
        """The value with the root mean square `size`."""
        g, one = self.g, [BATCH, SEQUENCE, 1]
        least = g.constant("altup.smallest", np.asarray(_SMALLEST**0.5, np.float32))
        own = g.op("Max", f"{at}/own_size", [self._size(value, f"{at}/size"), least], one)
        factor = g.op("Div", f"{at}/factor", [size, own], one)
        out: ir.Value = g.op("Mul", f"{at}/resized", [value, factor], self._one)
        return out
