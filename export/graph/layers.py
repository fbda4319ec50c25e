"""Stored matrices and vectors as nodes of one graph: lookups, products with bias and low-rank terms, norms.

Knows the checkpoint and the operators, and nothing of how a family puts them together (export/graph/block.py).
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from export.artefacts.checkpoint import COMPACT, RAZORED, TRELLIS, VECTORS, StoredTensors, TensorRecord
from export.contract.errors import InputError
from export.contract.formats.codebook import CODEBOOK_GATHER, CODEBOOK_MATMUL, DOMAIN
from export.contract.formats.trellis import TRELLIS_MATMUL, standard_levels
from export.contract.formats.vectors import VECTOR_MATMUL
from export.contract.sdr import SdrFormat
from export.contract.sparse import SPARSE_MATMUL, SparseLayout
from export.graph.bodies.sparse import sparse_function
from export.graph.bodies.trellis import trellis_function
from export.graph.bodies.vectors import vector_function
from export.graph.integers import IntegerArithmetic, IntegerLayers
from export.graph.writer import Dim, GraphWriter

_COMPACT_BODIES = {VECTORS: vector_function, TRELLIS: trellis_function}
BATCH, SEQUENCE = "batch_size", "sequence_length"


class Layers:
    """Writes into one graph the layers whose weights one checkpoint holds. Values are float32 [batch, sequence, n]."""

    def __init__(self, g: GraphWriter, checkpoint: StoredTensors) -> None:
        self.g, self.checkpoint = g, checkpoint
        self._decoded_scales: dict[str, ir.Value] = {}
        self.arithmetic = IntegerArithmetic.from_manifest(checkpoint.manifest)
        self._integers = IntegerLayers(g, self.arithmetic)

    def extra_bodies(self) -> tuple[onnx.FunctionProto, ...]:
        """Function bodies of the products with vector codes, trellis codes and sparse weights that are needed."""
        records = self.checkpoint.records.values()
        schemes = {record.scheme for record in records}
        bodies = [body() for scheme, body in _COMPACT_BODIES.items() if scheme in schemes]
        return (*bodies, sparse_function()) if any(record.outliers for record in records) else tuple(bodies)

    def lookup(self, module: str, ids: ir.Value, name: str, shape: tuple[int, int]) -> ir.Value:
        """Rows of a stored matrix [rows, columns] by int64 ids [a, b], as float32 [a, b, columns]."""
        inputs, record = self._matrix(module, shape)
        assert ids.shape is not None
        out: list[Dim] = [*(d if isinstance(d, int) else str(d.value) for d in ids.shape), shape[1]]
        if record.scheme == "codebook":
            attributes = record.layout().attributes()
            return self.g.op(CODEBOOK_GATHER, name, [ids, *inputs], out, domain=DOMAIN, attributes=attributes)
        dtype = inputs[0].dtype or ir.DataType.FLOAT
        return self._as_float(self.g.op("Gather", f"{name}/rows", [inputs[0], ids], out, dtype, axis=0), name, out)

    def matmul(
        self, module: str, value: ir.Value, name: str, columns: int, rows: int, bias: str | None = None
    ) -> ir.Value:
        """value @ W^T, plus the low-rank residual and the bias (the module's own) where the checkpoint has them."""
        g, bias = self.g, bias or f"{module}.bias"
        shape: list[Dim] = [BATCH, SEQUENCE, rows]
        inputs, record = self._matrix(module, (rows, columns))
        if self.arithmetic.activations is not None and self.checkpoint.has(f"{module}.input_unit"):
            out = self._integer_product(module, record, inputs, value, name)
        elif record.scheme == RAZORED:
            raise InputError(
                f"{self.checkpoint.folder}: {module} is razored, but its activations have no integer format"
            )
        elif record.scheme == "codebook":
            attributes = record.layout().attributes()
            out = g.op(CODEBOOK_MATMUL, name, [value, *inputs], shape, domain=DOMAIN, attributes=attributes)
        elif record.scheme in COMPACT:
            attributes = record.compact_layout().attributes()
            kind = TRELLIS_MATMUL if record.scheme == TRELLIS else VECTOR_MATMUL
            out = g.op(kind, name, [value, *inputs], shape, domain=DOMAIN, attributes=attributes)
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
        """value @ W^T on integers: razored weights, or the int8 entries of one codebook a row."""
        form = self.arithmetic.activations
        assert form is not None
        if record.scheme not in (RAZORED, "codebook") or (record.scheme == "codebook" and record.group_size):
            raise InputError(f"{self.checkpoint.folder}: {module} cannot multiply integers ({record.scheme})")
        layout = record.integer_layout(form.group_size)
        if record.scheme == RAZORED:
            if record.group_size != form.group_size or (record.rotation > 1) != self.arithmetic.rotate:
                raise InputError(f"{self.checkpoint.folder}: {module} and its activations are not razored alike")
            weights = inputs
        else:  # no flags: int8 entries are what they are
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
        """RMSNorm ("rms") or LayerNorm ("layer") over the last dimension of `shape`."""
        inputs = [value, self.vector(f"{module}.weight", offset)]
        if kind == "layer":
            inputs.append(self.vector(f"{module}.bias"))
        op_type = {"rms": "RMSNormalization", "layer": "LayerNormalization"}[kind]
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

    def activate(self, kind: str, value: ir.Value, name: str, width: int) -> ir.Value:
        """ "silu", "gelu", "gelu_tanh" or "relu"."""
        shape: list[Dim] = [BATCH, SEQUENCE, width]
        if kind == "silu":
            gate = self.g.op("Sigmoid", f"{name}/sigmoid", [value], shape)
            return self.g.op("Mul", name, [value, gate], shape)
        if kind == "relu":
            return self.g.op("Relu", name, [value], shape)
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
            self._stored(module, ".outlier_values", record.outlier_dtype, (record.outliers,)),
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
        if not self.checkpoint.has(module):
            raise InputError(f"{self.checkpoint.folder}: the quantized checkpoint has no tensor {module}")
        record = self.checkpoint.records[module]
        if record.shape != shape:
            raise InputError(f"{self.checkpoint.folder}: {module} is {list(record.shape)}, expected {list(shape)}")
        if record.scheme == RAZORED:
            return self._razored(module, record), record
        if record.scheme not in ("codebook", *COMPACT):
            return [self._stored(module, ".weight", record.scheme, shape)], record
        layout = record.layout() if record.scheme == "codebook" else record.compact_layout()
        parts = [
            self._stored(module, ".codes", np.uint8, layout.codes_shape),
            self._codebook(module, record, layout.codebook_shape),
            self._scale(module, record),
        ]
        return parts, record

    def _codebook(self, module: str, record: TensorRecord, shape: tuple[int, ...]) -> ir.Value:
        if not record.standard_levels:
            return self._stored(module, ".codebook", np.int8, shape)
        return self.g.constant(f"trellis.levels_{record.bits}", standard_levels(record.bits or 0)[None])

    def _razored(self, module: str, record: TensorRecord) -> list[ir.Value]:
        """Initializers of a razored matrix: codes, codebook, flags, scale."""
        layout = record.integer_layout(record.group_size)
        stored = layout.stored()
        drops = SdrFormat(8, layout.bits, layout.group_size).flag_limit > 0
        flags_shape = (layout.N if drops else 1, -(-layout.groups // 2))
        return [
            self._stored(module, ".codes", np.uint8, stored.codes_shape),
            self._stored(module, ".codebook", np.int8, stored.codebook_shape),
            self._stored(module, ".flags", np.uint8, flags_shape),
            self._stored(module, ".scale", record.scale_dtype, stored.scale_shape),
        ]

    def _scale(self, module: str, record: TensorRecord) -> ir.Value:
        """The scales [N, G]: stored as floats, or decoded once from codes by a lookup of all their rows."""
        if record.scale_bits is None:
            return self._stored(module, ".scale", record.scale_dtype, record.layout().scale_shape)
        if module not in self._decoded_scales:
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
            self._decoded_scales[module] = self.g.op(
                "Transpose", f"{name}/transpose", [by_group], [rows, groups], perm=[1, 0]
            )
        return self._decoded_scales[module]

    def _stored(self, module: str, suffix: str, dtype, shape) -> ir.Value:  # type: ignore[no-untyped-def]
        return self.g.lazy(module + suffix, dtype, shape, lambda: self.checkpoint.tensor(module, suffix))

    def _as_float(self, value: ir.Value, name: str, shape) -> ir.Value:  # type: ignore[no-untyped-def]
        if value.dtype == ir.DataType.FLOAT:
            return value
        return self.g.op("Cast", f"{name}/float", [value], shape, to=ir.DataType.FLOAT)
