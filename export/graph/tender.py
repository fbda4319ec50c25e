"""Layers whose activations are in channel groups: columns in the order of groups, their nodes (operators/tender.py)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from export.artefacts.checkpoint import StoredTensors
from export.artefacts.records import ARRAY, TensorRecord
from export.contract.errors import InputError
from export.contract.formats import CodebookLayout
from export.contract.formats.base import DOMAIN
from export.contract.operators.integers import SDR_MATMUL, IntegerLayout
from export.contract.operators.tender import TENDER_QUANTIZE, TenderFormat, channel_order, placed
from export.contract.packing import pack, row_bytes, unpack
from export.graph.integers import IntegerArithmetic
from export.graph.writer import Dim, GraphWriter

# What a checkpoint holds beside each matrix, float32: unit [1], middles and shifts [K], the middles times W [N]. None
# has the name of a razored layer's unit: who knows no groups finds the matrices of floating-point activations.
UNIT, MIDDLES, SHIFTS, MIDDLE_PRODUCT = "input_step", "input_middles", "input_shifts", "input_product"


class TenderLayers:
    """Writes such products into one graph; a value that several layers read alike is quantized once."""

    def __init__(self, g: GraphWriter, checkpoint: StoredTensors, arithmetic: IntegerArithmetic) -> None:
        self._g, self._checkpoint, self._arithmetic = g, checkpoint, arithmetic
        self._quantized: dict[tuple[object, ...], tuple[ir.Value, ...]] = {}

    def product(
        self, module: str, record: TensorRecord, part: Callable[[str, TensorRecord, str], ir.Value], value: ir.Value,
        name: str, bias: str,
    ) -> ir.Value:  # fmt: skip
        """value float32 [batch, sequence, K] @ W^T, plus the middles' product and the bias where there is one.

        part: makes an initializer of one part of a stored matrix. Raises InputError where they do not fit together.
        """
        g, rows, columns = self._g, record.shape[0], record.shape[1]
        layout = None if record.is_dense else record.matrix_layout()
        if not isinstance(layout, CodebookLayout) or layout.groups != 1 or record.rank or record.outliers:
            raise self._wrong(module, "needs one codebook along a row and nothing beside it")
        if record.parts["codes"].how != ARRAY:
            raise self._wrong(module, "its codes are no plain array")
        form, shifts = self._format(module), self._numbers(module, SHIFTS, columns)
        if (shifts != np.clip(np.rint(shifts), 0, self._arithmetic.channel_groups - 1)).any():
            raise self._wrong(module, "its shifts are no group numbers")
        order, runs = channel_order(shifts.astype(np.uint8), form.group_size)
        outer: list[Dim] = [d if isinstance(d, int) else str(d.value) for d in list(value.shape or ())[:-1]]
        activations = self._activations(module, form, value, order, runs, name, outer)

        def in_order() -> np.ndarray:
            codes = unpack(self._checkpoint.tensor(module, ".codes"), layout.bits, columns)
            return pack(placed(codes, order), layout.bits)

        places = order.size
        attributes = IntegerLayout(
            layout.bits, places, rows, form.group_size, layout.rows_per_codebook, layout.rows_per_scale
        ).attributes()
        flags = np.zeros((1, -(-runs.size // 2)), np.uint8)
        weights = [
            g.lazy(f"{module}.codes", np.uint8, (rows, row_bytes(places, layout.bits)), in_order),
            part(module, record, "codebook"),
            g.constant(f"flags.none_{flags.size}", flags),
            part(module, record, "scale"),
        ]
        shape = [*outer, rows]
        out = g.op(SDR_MATMUL, name, [*activations, *weights], shape, domain=DOMAIN, attributes=attributes)
        more = self._numbers(module, MIDDLE_PRODUCT, rows)
        if self._checkpoint.has(bias):
            more = more + self._checkpoint.tensor(bias, "").astype(np.float32)
        return g.op("Add", f"{name}/add_bias", [out, g.constant(f"{module}.{MIDDLE_PRODUCT}", more)], shape)

    def _activations(
        self, module: str, form: TenderFormat, value: ir.Value, order: np.ndarray, runs: np.ndarray, name: str,
        outer: list[Dim],
    ) -> tuple[ir.Value, ...]:  # fmt: skip
        g, unit = self._g, self._numbers(module, UNIT, 1)
        middle = placed(self._numbers(module, MIDDLES, int(order.max()) + 1), order)
        try:
            form.check(int(order.max()) + 1, order, middle, runs, unit)
        except ValueError as error:
            raise self._wrong(module, str(error)) from None
        constants = {"order": order, "middle": middle, "shifts": runs, "unit": unit}
        key = (value.name, *(array.tobytes() for array in constants.values()))
        if key not in self._quantized:
            inputs = [value, *(g.constant(f"{module}.input_{n}", array) for n, array in constants.items())]
            outputs = (
                ("codes", [*outer, runs.size, form.group_size], ir.DataType.INT8),
                ("flags", [*outer, runs.size], ir.DataType.UINT8),
                ("units", [*outer, 1], ir.DataType.FLOAT),
            )
            self._quantized[key] = g.typed_op(
                TENDER_QUANTIZE, f"{name}/quantize", inputs, outputs, DOMAIN, form.attributes()
            )
        return self._quantized[key]

    def _format(self, module: str) -> TenderFormat:
        own = self._arithmetic.activations
        assert own is not None  # from_manifest has looked
        try:
            return TenderFormat(own.width, own.group_size)
        except ValueError as error:
            raise self._wrong(module, str(error)) from None

    def _numbers(self, module: str, name: str, count: int) -> np.ndarray:
        """float32 [count]."""
        full = f"{module}.{name}"
        found = self._checkpoint.tensor(full, "") if self._checkpoint.has(full) else np.zeros(0)
        if found.shape != (count,) or not np.isfinite(found).all():
            raise InputError(f"{self._checkpoint.folder}: {full} is missing or not {count} finite numbers")
        return found.astype(np.float32)

    def _wrong(self, module: str, why: str) -> InputError:
        return InputError(f"{self._checkpoint.folder}: {module} cannot multiply channel groups: {why}")
