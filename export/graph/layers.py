"""Stored matrices and vectors as nodes of one graph: lookups, products with bias and low-rank terms, norms.

Knows the checkpoint and the operators, and nothing of how a family puts them together (export/graph/whole/block.py).
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from export.artefacts.checkpoint import StoredTensors
from export.artefacts.records import CODES, STANDARD, StoredPart, TensorRecord
from export.contract.errors import InputError
from export.contract.formats import FORMATS, CodebookLayout
from export.contract.formats.base import DOMAIN
from export.contract.operators.causal_convolution import CAUSAL_CONVOLUTION, causal_convolution_function
from export.contract.operators.delta_rule import GATED_DELTA_RULE, delta_rule_function
from export.contract.operators.experts import expert_functions
from export.contract.operators.integers import IntegerLayout
from export.contract.operators.sink_attention import sink_attention_function
from export.contract.operators.state_space import SELECTIVE_STATE_SPACE, state_space_function
from export.contract.sparse import SPARSE_MATMUL, SparseLayout
from export.graph.bodies.sparse import sparse_function
from export.graph.integers import IntegerArithmetic, IntegerLayers
from export.graph.spec import ModelSpec
from export.graph.tender import SHIFTS, TenderLayers
from export.graph.writer import Dim, GraphWriter

BATCH, SEQUENCE = "batch_size", "sequence_length"


class Layers:
    """Writes into one graph the layers whose weights one checkpoint holds. Values are float32 [batch, sequence, n]."""

    def __init__(self, g: GraphWriter, checkpoint: StoredTensors) -> None:
        self.g, self.checkpoint = g, checkpoint
        self._decoded_parts: dict[tuple[str, str], ir.Value] = {}
        self.expert_schemes: set[str] = set()  # formats that experts are stored in
        self.has_sinks = False  # whether an attention of theirs has them
        self.operators: set[str] = set()  # others of ours that the graph has
        self.arithmetic = IntegerArithmetic.from_manifest(checkpoint.manifest)
        self._integers = IntegerLayers(g, self.arithmetic)
        self._tender = TenderLayers(g, checkpoint, self.arithmetic)

    def bodies(self) -> tuple[onnx.FunctionProto, ...]:
        """Function bodies of the operators with stored matrices that are needed."""
        records = self.checkpoint.records.values()
        schemes = {CodebookLayout.SCHEME, *(record.scheme for record in records)}  # codes of scales are codebooks
        found = [body for scheme, kind in FORMATS.items() if scheme in schemes for body in kind.function_bodies()]
        found += expert_functions(frozenset(self.expert_schemes))
        found += [sink_attention_function()] if self.has_sinks else []
        found += [causal_convolution_function()] if CAUSAL_CONVOLUTION in self.operators else []
        found += [delta_rule_function()] if GATED_DELTA_RULE in self.operators else []
        found += [state_space_function()] if SELECTIVE_STATE_SPACE in self.operators else []
        return (*found, sparse_function()) if any(record.outliers for record in records) else tuple(found)

    def lookup(self, module: str, ids: ir.Value, name: str, shape: tuple[int, int]) -> ir.Value:
        """Rows of a stored matrix [rows, columns] by int64 ids [a, b], as float32 [a, b, columns]."""
        inputs, record = self._matrix(module, shape)
        assert ids.shape is not None
        out: list[Dim] = [*(d if isinstance(d, int) else str(d.value) for d in ids.shape), shape[1]]
        if not record.is_dense:
            layout = record.matrix_layout()
            if not layout.LOOKUP:
                raise InputError(f"{self.checkpoint.folder}: rows of {module} cannot be looked up ({record.scheme})")
            attributes = layout.attributes()
            return self.g.op(layout.LOOKUP, name, [ids, *inputs], out, domain=DOMAIN, attributes=attributes)
        dtype = inputs[0].dtype or ir.DataType.FLOAT
        return self._as_float(self.g.op("Gather", f"{name}/rows", [inputs[0], ids], out, dtype, axis=0), name, out)

    def matmul(
        self, module: str, value: ir.Value, name: str, columns: int, rows: int, bias: str | None = None
    ) -> ir.Value:
        """value @ W^T, plus the low-rank residual and the bias (the module's own) where the checkpoint has them."""
        g, bias = self.g, bias or f"{module}.bias"
        shape: list[Dim] = [BATCH, SEQUENCE, rows]
        if self.arithmetic.channel_groups and self.checkpoint.has(f"{module}.{SHIFTS}"):
            return self._tender.product(module, self._record(module, (rows, columns)), self._part, value, name, bias)
        inputs, record = self._matrix(module, (rows, columns))
        if self.arithmetic.activations is not None and self.checkpoint.has(f"{module}.input_unit"):
            out = self._integer_product(module, record, inputs, value, name)
        elif not record.is_dense:
            layout = record.matrix_layout()
            if not layout.OPERATOR:
                raise InputError(
                    f"{self.checkpoint.folder}: {module} is {record.scheme}, but its activations have no integer format"
                )
            attributes = layout.attributes()
            out = g.op(layout.OPERATOR, name, [value, *inputs], shape, domain=DOMAIN, attributes=attributes)
        else:
            weight = self._as_float(inputs[0], f"{name}/weight", [rows, columns])
            transposed = g.op("Transpose", f"{name}/transpose", [weight], [columns, rows], perm=[1, 0])
            out = g.op("MatMul", name, [value, transposed], shape)
        if record.outliers:
            out = self._add_outliers(module, record, value, out, name)
        if record.rank:
            out = self._add_low_rank(module, record.rank, value, out, name, columns, rows)
        if self.checkpoint.has(bias):
            out = g.op("Add", f"{name}/add_bias", [out, self.vector(bias)], shape)
        return out

    def _integer_product(
        self, module: str, record: TensorRecord, inputs: list[ir.Value], value: ir.Value, name: str
    ) -> ir.Value:
        """value @ W^T on integers: weights that have flags, or the int8 entries of one codebook a row."""
        form = self.arithmetic.activations
        assert form is not None
        stored = None if record.is_dense else record.matrix_layout()
        try:
            attributes = None if stored is None else stored.integer_attributes(form.group_size)
        except ValueError as error:
            raise InputError(f"{self.checkpoint.folder}: {module} and its activations differ: {error}") from None
        if attributes is None:
            raise InputError(f"{self.checkpoint.folder}: {module} cannot multiply integers ({record.scheme})")
        if (record.layout.get("rotation", 1) > 1) != self.arithmetic.rotate and "flags" in record.parts:
            raise InputError(f"{self.checkpoint.folder}: {module} and its activations are not rotated alike")
        layout, weights = IntegerLayout(**attributes), inputs
        if "flags" not in record.parts:  # int8 entries are what they are
            codes, codebook, scale = inputs
            flags = np.zeros((1, -(-layout.groups // 2)), np.uint8)
            weights = [codes, codebook, self.g.constant(f"flags.none_{flags.size}", flags), scale]
        return self._integers.product(value, self.unit(f"{module}.input_unit", 1), weights, layout, name)

    def unit(self, name: str, most: int) -> np.ndarray:
        """What one step of integers is worth: positive float32 [1] or [most]. Raises InputError."""
        found = self.checkpoint.tensor(name, "") if self.checkpoint.has(name) else np.zeros(0)
        if found.shape not in ((1,), (most,)) or not (np.isfinite(found).all() and (found > 0).all()):
            raise InputError(f"{self.checkpoint.folder}: {name} is missing or not {most} positive numbers")
        return found.astype(np.float32)

    def norm(
        self, kind: str, value: ir.Value, module: str, name: str, shape: list[Dim], epsilon: float, offset: float = 0.0
    ) -> ir.Value:
        """RMSNorm ("rms") or LayerNorm ("layer", "layer_without_bias") over the last dimension of `shape`."""
        inputs = [value, self.vector(f"{module}.weight", offset)]
        if kind == "layer":
            inputs.append(self.vector(f"{module}.bias"))
        op_type = "RMSNormalization" if kind == "rms" else "LayerNormalization"
        return self.g.op(op_type, name, inputs, shape, epsilon=epsilon, axis=-1)

    def scaled(self, value: ir.Value, factor: float, name: str, width: int) -> ir.Value:
        if factor == 1.0:
            return value
        constant = self.g.constant(f"scale.{factor!r}", np.asarray(factor, np.float32))
        return self.g.op("Mul", name, [value, constant], [BATCH, SEQUENCE, width])

    def softcap(self, value: ir.Value, cap: float | None, name: str, width: int) -> ir.Value:
        """cap * tanh(value / cap)."""
        if cap is None:
            return value
        shape: list[Dim] = [BATCH, SEQUENCE, width]
        divided = self.scaled(value, 1 / cap, f"{name}/divided", width)
        return self.scaled(self.g.op("Tanh", f"{name}/tanh", [divided], shape), cap, name, width)

    def gated(self, spec: ModelSpec, gate: ir.Value, up: ir.Value, at: str, shape: list[Dim]) -> ir.Value:
        """activation(gate) * up, or what the family has in its place."""
        g, clamped = self.g, spec.clamped_gate
        if clamped is None:
            active = self.activate(spec.activation, gate, f"{at}/activation", shape)
            return g.op("Mul", f"{at}/gated", [active, up], shape)
        numbers = {"limit": clamped.limit, "lowest": -clamped.limit, "alpha": clamped.alpha, "one": 1.0}
        limit, lowest, alpha, one = (
            g.constant(f"gate.{name}", np.asarray(value, np.float32)) for name, value in numbers.items()
        )
        gate = g.op("Min", f"{at}/gate_clamped", [gate, limit], shape)
        up = g.op("Clip", f"{at}/up_clamped", [up, lowest, limit], shape)
        steep = g.op("Mul", f"{at}/gate_alpha", [gate, alpha], shape)
        share = g.op("Sigmoid", f"{at}/gate_sigmoid", [steep], shape)
        active = g.op("Mul", f"{at}/activation", [gate, share], shape)
        more = g.op("Add", f"{at}/up_and_one", [up, one], shape)
        return g.op("Mul", f"{at}/gated", [active, more], shape)

    def activate(self, kind: str, value: ir.Value, name: str, shape: list[Dim]) -> ir.Value:
        """ "silu", "gelu", "gelu_tanh", "relu", "relu2" (its square), "tanh", "sigmoid" or "identity"."""
        if kind == "identity":
            return value
        if kind == "silu":
            gate = self.g.op("Sigmoid", f"{name}/sigmoid", [value], shape)
            return self.g.op("Mul", name, [value, gate], shape)
        if kind == "relu2":
            positive = self.g.op("Relu", f"{name}/relu", [value], shape)
            return self.g.op("Mul", name, [positive, positive], shape)
        if kind in ("relu", "tanh", "sigmoid"):
            return self.g.op(kind.capitalize(), name, [value], shape)
        return self.g.op("Gelu", name, [value], shape, approximate="tanh" if kind == "gelu_tanh" else "none")

    def vector(self, name: str, offset: float = 0.0) -> ir.Value:
        """A norm weight or bias, float32, plus `offset`."""
        if not self.checkpoint.has(name):
            raise InputError(f"{self.checkpoint.folder}: the quantized checkpoint has no tensor {name}")
        shape = self.checkpoint.records[name].shape
        return self.g.lazy(name, np.float32, shape, lambda: self.checkpoint.tensor(name, "") + np.float32(offset))

    def _add_outliers(self, module: str, record: TensorRecord, value: ir.Value, out: ir.Value, name: str) -> ir.Value:
        rows, columns = record.shape
        parts = [
            self._stored(module, ".outlier_gaps", np.uint16, (record.outliers,)),
            self._stored(module, ".outlier_values", record.parts["outlier_values"].dtype, (record.outliers,)),
        ]
        attributes, shape = SparseLayout(columns, rows).attributes(), [BATCH, SEQUENCE, rows]
        apart = self.g.op(
            SPARSE_MATMUL, f"{name}/outliers", [value, *parts], shape, domain=DOMAIN, attributes=attributes
        )
        return self.g.op("Add", f"{name}/add_outliers", [out, apart], shape)

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
        record = self._record(module, shape)
        if record.is_dense:
            return [self._stored(module, ".weight", record.scheme, shape)], record
        return [self._part(module, record, name) for name in record.matrix_layout().parts()], record

    def _record(self, module: str, shape: tuple[int, int]) -> TensorRecord:
        if not self.checkpoint.has(module):
            raise InputError(f"{self.checkpoint.folder}: the quantized checkpoint has no tensor {module}")
        record = self.checkpoint.records[module]
        if record.shape != shape:
            raise InputError(f"{self.checkpoint.folder}: {module} is {list(record.shape)}, expected {list(shape)}")
        return record

    def _part(self, module: str, record: TensorRecord, name: str) -> ir.Value:
        """One part of a stored matrix: an initializer, the format's own table, or what its codes stand for."""
        part = record.parts[name]
        if part.how == STANDARD:
            table = record.matrix_layout().standard(name, part.edition)
            return self.g.constant(f"{record.scheme}.levels_{record.bits}_{part.edition}", table)
        if part.how == CODES:
            return self._decoded(module, name, part)
        return self._stored(module, f".{name}", part.dtype, part.shape)

    def _decoded(self, module: str, name: str, part: StoredPart) -> ir.Value:
        """A part whose transpose is stored as codes: decoded once by a lookup of all rows of that."""
        if (module, name) not in self._decoded_parts:
            layout, path = part.coded_layout(), f"/{module.replace('.', '/')}/{name}"
            groups, rows = layout.N, layout.K
            ids = self.g.constant(f"scale.groups_{groups}", np.arange(groups, dtype=np.int64))
            dtypes = {"codes": "uint8", "codebook": "int8", "scale": part.dtype}
            inputs = [
                self._stored(module, f".{name}.{own}", dtypes[own], shape.shape)
                for own, shape in layout.parts().items()
            ]
            by_group = self.g.op(
                layout.LOOKUP, path, [ids, *inputs], [groups, rows], domain=DOMAIN, attributes=layout.attributes()
            )
            self._decoded_parts[module, name] = self.g.op(
                "Transpose", f"{path}/transpose", [by_group], [rows, groups], perm=[1, 0]
            )
        return self._decoded_parts[module, name]

    def _stored(self, module: str, suffix: str, dtype, shape) -> ir.Value:  # type: ignore[no-untyped-def]
        return self.g.lazy(module + suffix, dtype, shape, lambda: self.checkpoint.tensor(module, suffix))

    def _as_float(self, value: ir.Value, name: str, shape) -> ir.Value:  # type: ignore[no-untyped-def]
        if value.dtype == ir.DataType.FLOAT:
            return value
        return self.g.op("Cast", f"{name}/float", [value], shape, to=ir.DataType.FLOAT)
