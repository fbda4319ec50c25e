"""The feed-forward part of a block whose router picks experts: nodes, and the experts' matrices stacked into one.

Router, its softmax, the picks and their weights are standard ONNX; the experts' products are those of
export/contract/operators/experts.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from export.artefacts.records import CODES, LOW_RANK, STANDARD, StoredPart, TensorRecord
from export.contract.errors import InputError
from export.contract.formats.base import DOMAIN, Layout
from export.contract.operators.experts import ExpertLayout
from export.graph.layers import BATCH, SEQUENCE, Layers
from export.graph.parts import SharedExpert
from export.graph.spec import ModelSpec
from export.graph.writer import Dim

LONG = ir.DataType.INT64


class ExpertLayers:
    """Writes the experts of one model. Values are float32 [batch, sequence, ...]."""

    def __init__(self, spec: ModelSpec, layers: Layers) -> None:
        self.spec, self.layers, self.g = spec, layers, layers.g

    def feed_forward(self, layer: int, value: ir.Value, routed: ir.Value | None = None) -> ir.Value:
        """What the picked experts of block `layer` give, added up with their weights.

        routed: what the router reads, where that is another value than the experts do.
        """
        g, spec, block = self.g, self.spec, self.spec.names_of_layer(layer)
        experts, prefix, at = block.experts, spec.prefix(layer), f"/model/layers.{layer}/mlp"
        assert experts is not None and block.up and block.down
        k, hidden, width = experts.per_token, spec.hidden_size, experts.width
        weights, picked = self._route(layer, value if routed is None else routed)
        axis = g.constant("axis.third", np.asarray([2], np.int64))
        one = g.op("Unsqueeze", f"{at}/one_input", [value, axis], [BATCH, SEQUENCE, 1, hidden])
        sides = []
        for template, name in ((block.gate, "gate"), (block.up, "up")):
            if template is not None:
                modules = [prefix + module for module in experts.names(template)]
                sides.append(self._product(modules, one, picked, f"{at}/experts/{name}", (width, hidden)))
        inner: list[Dim] = [BATCH, SEQUENCE, k, width]
        if block.gate is None:
            gated = self.layers.activate(spec.activation, sides[0], f"{at}/activation", inner)
        else:
            gated = self.layers.gated(spec, sides[0], sides[1], at, inner)
        modules = [prefix + module for module in experts.names(block.down)]
        out = self._product(modules, gated, picked, f"{at}/experts/down", (hidden, width))
        last = g.constant("axis.last", np.asarray([-1], np.int64))
        column = g.op("Unsqueeze", f"{at}/weight_column", [weights, last], [BATCH, SEQUENCE, k, 1])
        weighted = g.op("Mul", f"{at}/weighted", [out, column], [BATCH, SEQUENCE, k, hidden])
        total = g.op("ReduceSum", f"{at}/sum", [weighted, axis], [BATCH, SEQUENCE, hidden], keepdims=0)
        if experts.shared is None:
            return total
        shared = self._shared(layer, experts.shared, value)
        return g.op("Add", f"{at}/with_shared", [total, shared], [BATCH, SEQUENCE, hidden])

    def _shared(self, layer: int, expert: SharedExpert, value: ir.Value) -> ir.Value:
        """What the expert of all tokens gives, times its share where it has one."""
        g, spec, at = self.g, self.spec, f"/model/layers.{layer}/mlp/shared_expert"
        prefix, hidden, width = spec.prefix(layer), spec.hidden_size, expert.width
        inner = self._shared_inner(expert, value, prefix, at)
        out = self.layers.matmul(prefix + expert.down, inner, f"{at}/down", width, hidden)
        if expert.weight is None:
            return out
        matrix = self.layers.vector(f"{prefix}{expert.weight}.weight")
        if tuple(matrix.shape or ()) != (1, hidden):
            raise InputError(f"{self._folder}: {matrix.name} is {matrix.shape}, expected {[1, hidden]}")
        column = g.op("Transpose", f"{at}/weight/transpose", [matrix], [hidden, 1], perm=[1, 0])
        product = g.op("MatMul", f"{at}/weight", [value, column], [BATCH, SEQUENCE, 1])
        share = g.op("Sigmoid", f"{at}/share", [product], [BATCH, SEQUENCE, 1])
        return g.op("Mul", f"{at}/weighted", [out, share], [BATCH, SEQUENCE, hidden])

    def _shared_inner(self, expert: SharedExpert, value: ir.Value, prefix: str, at: str) -> ir.Value:
        """What goes into its `down`, float32 [batch, sequence, width]."""
        spec, width = self.spec, expert.width
        rows: list[Dim] = [BATCH, SEQUENCE, width]

        def product(name: str, kind: str, columns: int) -> ir.Value:
            return self.layers.matmul(prefix + name, value, f"{at}/{kind}", spec.hidden_size, columns)

        if expert.fused_gate_up is not None:
            sizes = self.g.constant(f"shared_expert.widths_{width}", np.asarray([width, width], np.int64))
            fused = product(expert.fused_gate_up, "gate_up", 2 * width)
            gate, up = self.g.op("Split", f"{at}/split", [fused, sizes], [rows, rows], axis=-1)
            return self.layers.gated(spec, gate, up, at, rows)
        assert expert.up is not None
        if expert.gate is None:
            return self.layers.activate(spec.activation, product(expert.up, "up", width), f"{at}/activation", rows)
        return self.layers.gated(spec, product(expert.gate, "gate", width), product(expert.up, "up", width), at, rows)

    def _route(self, layer: int, value: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Weights float32 and numbers int64 of each token's experts, both [batch, sequence, k], largest weight first.

        Of equal probabilities TopK takes the expert with the lower number.
        """
        g, experts = self.g, self.spec.names_of_layer(layer).experts
        assert experts is not None
        at = f"/model/layers.{layer}/mlp/router"
        shape: list[Dim] = [BATCH, SEQUENCE, experts.count]
        few: list[Dim] = [BATCH, SEQUENCE, experts.per_token]
        matrix = self.layers.vector(f"{self.spec.prefix(layer)}{experts.router}.weight")
        stated = (experts.count, self.spec.hidden_size)
        if tuple(matrix.shape or ()) != stated:
            raise InputError(f"{self.layers.checkpoint.folder}: {matrix.name} is {matrix.shape}, expected {stated}")
        transposed = g.op("Transpose", f"{at}/transpose", [matrix], [stated[1], stated[0]], perm=[1, 0])
        scores = g.op("MatMul", at, [value, transposed], shape)
        bias = f"{self.spec.prefix(layer)}{experts.router}.bias"
        if self.layers.checkpoint.has(bias):
            scores = g.op("Add", f"{at}/add_bias", [scores, self.layers.vector(bias)], shape)
        if experts.sigmoid:
            scores = g.op("Sigmoid", f"{at}/sigmoid", [scores], shape)
        elif not experts.of_picked:
            scores = g.op("Softmax", f"{at}/softmax", [scores], shape, axis=-1)
        ranked = self._ranked(layer, scores)
        count = g.constant(f"router.experts_per_token_{experts.per_token}", np.asarray([experts.per_token], np.int64))
        outputs = (("output_0", few, ir.DataType.FLOAT), ("output_1", few, LONG))
        weights, picked = g.typed_op("TopK", f"{at}/top", [ranked, count], outputs, "", {"axis": -1})
        if ranked is not scores:
            weights = g.op("GatherElements", f"{at}/of_picked", [scores, picked], few, axis=2)
        if experts.of_picked:
            weights = g.op("Softmax", f"{at}/softmax", [weights], few, axis=-1)
        if experts.normalised:
            last, one = g.constant("axis.last", np.asarray([-1], np.int64)), [BATCH, SEQUENCE, 1]
            total = g.op("ReduceSum", f"{at}/total", [weights, last], one, keepdims=1)
            if experts.floor:
                floor = g.constant("router.floor", np.asarray([experts.floor], np.float32))
                total = g.op("Add", f"{at}/total_and_floor", [total, floor], one)
            weights = g.op("Div", f"{at}/normalised", [weights, total], few)
        if experts.scale != 1:
            scale = g.constant("router.scale", np.asarray([experts.scale], np.float32))
            weights = g.op("Mul", f"{at}/scaled", [weights, scale], few)
        if experts.own_scales is not None:
            name = self.spec.prefix(layer) + experts.own_scales
            scales = self.layers.vector(name)
            if tuple(scales.shape or ()) != (experts.count,):
                raise InputError(f"{self._folder}: {name} is {scales.shape}, expected {[experts.count]}")
            own = g.op("Gather", f"{at}/own_scale", [scales, picked], few, axis=0)
            weights = g.op("Mul", f"{at}/with_own_scale", [weights, own], few)
        return weights, picked

    def _ranked(self, layer: int, scores: ir.Value) -> ir.Value:
        """What experts are picked by: the scores, and each expert's bias where the router has them."""
        experts, checkpoint = self.spec.names_of_layer(layer).experts, self.layers.checkpoint
        assert experts is not None
        if experts.pick_bias is None:
            return scores
        name = self.spec.prefix(layer) + experts.pick_bias
        bias = self.layers.vector(name)
        if tuple(bias.shape or ()) != (experts.count,):
            raise InputError(f"{checkpoint.folder}: {name} is {bias.shape}, expected {[experts.count]}")
        shape: list[Dim] = [BATCH, SEQUENCE, experts.count]
        return self.g.op("Add", f"/model/layers.{layer}/mlp/router/ranked", [scores, bias], shape)

    def _product(
        self, modules: Sequence[str], value: ir.Value, picked: ir.Value, name: str, shape: tuple[int, int]
    ) -> ir.Value:
        """The picked experts' products, float32 [batch, sequence, k, rows]; modules: of all experts, each `shape`."""
        records = [self._record(module, shape) for module in modules]
        first = records[0]
        if any(record.outliers for record in records):
            raise InputError(f"{self._folder}: {first.name}: experts with outliers stored apart are not supported")
        rank = first.rank
        alike = all((r.scheme, dict(r.layout), r.rank) == (first.scheme, dict(first.layout), rank) for r in records)
        if not alike and not all(record.is_dense for record in records):
            raise InputError(f"{self._folder}: {first.name} and the same layer of other experts differ in form")
        parts, stored = self._stacked(records), None if first.is_dense else first.matrix_layout()
        if stored is not None:
            stored = replace(stored, N=stored.N * len(records))
        out = self._node(len(records), stored, shape, (value, picked), parts, name)
        if self.layers.checkpoint.has(f"{first.name}.bias"):
            out = self._add_bias(records, out, picked, name, shape[0])
        if not rank:
            return out
        for factor, size in zip(LOW_RANK, ((rank, shape[1]), (shape[0], rank))):
            dense = [self._joined(records, f".{factor}", "float16", size)]
            value = self._node(len(records), None, size, (value, picked), dense, f"{name}/{factor}")
        return self.g.op("Add", f"{name}/add_lowrank", [out, value], [BATCH, SEQUENCE, self._picks, shape[0]])

    def _add_bias(self, records: list[TensorRecord], out: ir.Value, picked: ir.Value, name: str, rows: int) -> ir.Value:
        """`out` and the biases of the picked experts."""
        g, shape, checkpoint = self.g, [BATCH, SEQUENCE, self._picks, rows], self.layers.checkpoint
        missing = next((record.name for record in records if not checkpoint.has(f"{record.name}.bias")), None)
        if missing is not None:
            raise InputError(f"{self._folder}: the quantized checkpoint has no tensor {missing}.bias")
        whole = f"{records[0].name}.bias.of_{len(records)}_experts"

        def load() -> np.ndarray:
            return np.stack([_row(checkpoint.tensor(f"{record.name}.bias", ""), rows, record) for record in records])

        biases = g.lazy(whole, "float32", (len(records), rows), load)
        own = g.op("Gather", f"{name}/bias", [biases, picked], shape, axis=0)
        return g.op("Add", f"{name}/add_bias", [out, own], shape)

    @property
    def _picks(self) -> int:
        return next(names.experts.per_token for names in self.spec.kinds() if names.experts is not None)

    @property
    def _folder(self) -> str:
        return str(self.layers.checkpoint.folder)

    def _record(self, module: str, shape: tuple[int, int]) -> TensorRecord:
        checkpoint = self.layers.checkpoint
        if not checkpoint.has(module):
            raise InputError(f"{self._folder}: the quantized checkpoint has no tensor {module}")
        record = checkpoint.records[module]
        if record.shape != shape:
            raise InputError(f"{self._folder}: {module} is {list(record.shape)}, expected {list(shape)}")
        if checkpoint.has(f"{module}.input_unit"):
            raise InputError(f"{self._folder}: {module}: experts have no integer activations here")
        return record

    def _node(
        self, experts: int, stored: Layout | None, shape: tuple[int, int], inputs: tuple[ir.Value, ir.Value],
        parts: list[ir.Value], name: str,
    ) -> ir.Value:  # fmt: skip
        rows, columns = shape
        try:
            layout = ExpertLayout(experts, columns, rows * experts, stored)
            operator = layout.operator
        except ValueError as error:
            raise InputError(f"{self._folder}: the experts of {name} cannot be stacked: {error}") from None
        out: list[Dim] = [BATCH, SEQUENCE, self._picks, rows]
        self.layers.expert_schemes.add("float32" if stored is None else stored.SCHEME)
        return self.g.op(operator, name, [*inputs, *parts], out, domain=DOMAIN, attributes=layout.attributes())

    def _stacked(self, records: list[TensorRecord]) -> list[ir.Value]:
        """The parts of all experts' matrices, one expert after another."""
        first = records[0]
        if first.is_dense:
            dtype = "float32" if any(record.scheme == "float32" for record in records) else "float16"
            return [self._joined(records, ".weight", dtype, first.shape)]
        return [self._part(records, name) for name in first.matrix_layout().parts()]

    def _part(self, records: list[TensorRecord], name: str) -> ir.Value:
        first, count = records[0], len(records)
        part = first.parts[name]
        if part.how == STANDARD:
            if any(record.parts[name] != part for record in records):
                raise InputError(f"{first.name} and others of its block have {name} of different editions")
            table = first.matrix_layout().standard(name, part.edition)
            repeated = np.repeat(table, count, axis=0)
            return self.g.constant(f"{first.scheme}.levels_{first.bits}_{part.edition}_of_{count}", repeated)
        if part.how == CODES:
            return self._decoded(records, name, part)
        return self._joined(records, f".{name}", self._dtype(records, name), part.shape)

    def _decoded(self, records: list[TensorRecord], name: str, part: StoredPart) -> ir.Value:
        """A part that every expert stores as codes of its transpose: looked up at once, then turned for each expert."""
        g, count, layout = self.g, len(records), part.coded_layout()
        path = f"/{records[0].name.replace('.', '/')}/all_{name}"
        tall, dtype = replace(layout, N=layout.N * count), self._dtype(records, name)
        dtypes = {"codes": "uint8", "codebook": "int8", "scale": dtype}
        inputs = [
            self._joined(records, f".{name}.{own}", dtypes[own], shape.shape) for own, shape in layout.parts().items()
        ]
        ids = g.constant(f"scale.groups_{tall.N}", np.arange(tall.N, dtype=np.int64))
        attributes = tall.attributes()
        by_group = g.op(layout.LOOKUP, path, [ids, *inputs], [tall.N, tall.K], domain=DOMAIN, attributes=attributes)
        split = g.constant(f"scale.experts_{count}_{layout.N}_{layout.K}", np.array([count, layout.N, layout.K]))
        apart = g.op("Reshape", f"{path}/by_expert", [by_group, split], [count, layout.N, layout.K])
        turned = g.op("Transpose", f"{path}/transpose", [apart], [count, layout.K, layout.N], perm=[0, 2, 1])
        rows = g.constant(f"scale.rows_{count * layout.K}_{layout.N}", np.array([count * layout.K, layout.N]))
        return g.op("Reshape", f"{path}/rows", [turned, rows], [count * layout.K, layout.N])

    def _dtype(self, records: list[TensorRecord], name: str) -> str:
        """The type that holds the part of every expert."""
        found = {record.parts[name].dtype for record in records}
        return found.pop() if len(found) == 1 else "float32"

    def _joined(self, records: list[TensorRecord], suffix: str, dtype: str, shape: Sequence[int]) -> ir.Value:
        """A stored part of every expert, joined along its first dimension when the file is written."""
        checkpoint = self.layers.checkpoint
        whole = (shape[0] * len(records), *shape[1:])
        name = f"{records[0].name}{suffix}.of_{len(records)}_experts"

        def load() -> np.ndarray:
            out = np.empty(whole, dtype)
            for number, record in enumerate(records):
                found = checkpoint.tensor(record.name, suffix)
                if found.shape != tuple(shape):
                    raise InputError(f"{self._folder}: {record.name}{suffix} is {list(found.shape)}, not {list(shape)}")
                out[number * shape[0] : (number + 1) * shape[0]] = found
            return out

        return self.g.lazy(name, dtype, whole, load)


def _row(bias: np.ndarray, rows: int, record: TensorRecord) -> np.ndarray:
    if bias.shape != (rows,):
        raise InputError(f"{record.name}.bias is {list(bias.shape)}, expected {[rows]}")
    return bias
