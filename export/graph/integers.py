"""What of a checkpoint is computed on integers, and the nodes that do it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from export.contract.errors import InputError
from export.contract.formats.base import DOMAIN
from export.contract.operators.integers import SDR_MATMUL, SDR_QUANTIZE, IntegerLayout, code_type, format_attributes
from export.contract.operators.tender import MOST_GROUPS
from export.contract.rotation import hadamard, rotation_size
from export.contract.sdr import SdrFormat
from export.graph.writer import Dim, GraphWriter


@dataclass(frozen=True)
class IntegerArithmetic:
    """Formats of activations and of the key-value cache; None: floating point."""

    activations: SdrFormat | None = None
    per_token: bool = False  # a unit for each token, computed from it; False: calibrated units
    cache: SdrFormat | None = None
    rotate: bool = False  # activations are rotated before they are quantized
    channel_groups: int = 0  # activations in so many groups of channels (operators/tender.py); 0: they are razored

    def to_json(self) -> dict[str, Any]:
        return {
            "activations": self.activations.to_json() if self.activations else None,
            "per_token": self.per_token,
            "cache": self.cache.to_json() if self.cache else None,
            "rotate": self.rotate,
            **({"channel_groups": self.channel_groups} if self.channel_groups else {}),
        }

    @staticmethod
    def from_manifest(manifest: Mapping[str, Any]) -> IntegerArithmetic:
        """What a checkpoint's manifest says; nothing where it has no such entry. Raises InputError."""
        found = manifest.get("integers")
        if found is None:
            return IntegerArithmetic()
        try:
            activations, cache = (
                SdrFormat(**found[name]) if found[name] else None for name in ("activations", "cache")
            )
            groups = found.get("channel_groups", 0)
            if type(groups) is not int or not 0 <= groups <= MOST_GROUPS or (groups and activations is None):
                raise ValueError(f"{groups!r:.50} groups of channels")
            return IntegerArithmetic(activations, bool(found["per_token"]), cache, bool(found["rotate"]), groups)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"athena.json: the entry `integers` is wrong ({error})") from None


class IntegerLayers:
    """Writes integer products into one graph; a value that several layers read is quantized once."""

    def __init__(self, g: GraphWriter, arithmetic: IntegerArithmetic) -> None:
        self.g, self.arithmetic = g, arithmetic
        self._quantized: dict[tuple[Any, ...], tuple[ir.Value, ...]] = {}

    def product(
        self, value: ir.Value, unit: np.ndarray, weights: list[ir.Value], layout: IntegerLayout, name: str
    ) -> ir.Value:
        """value float32 [batch, sequence, K] times stored weights: codes, codebook, flags, scale."""
        form = self.arithmetic.activations
        assert form is not None and value.shape is not None
        outer: list[Dim] = [d if isinstance(d, int) else str(d.value) for d in list(value.shape)[:-1]]
        key = (value.name, unit.tobytes(), layout.group_size)
        if key not in self._quantized:
            self._quantized[key] = self._quantize(value, unit, layout, form, name, outer)
        inputs = [*self._quantized[key], *weights]
        return self.g.op(SDR_MATMUL, name, inputs, [*outer, layout.N], domain=DOMAIN, attributes=layout.attributes())

    def _quantize(
        self, value: ir.Value, unit: np.ndarray, layout: IntegerLayout, form: SdrFormat, name: str, outer: list[Dim]
    ) -> tuple[ir.Value, ...]:
        g = self.g
        if self.arithmetic.rotate:
            value = self._rotate(value, layout.K, f"{name}/rotate", outer)
        scalar = g.constant(f"{name.strip('/').replace('/', '.')}.input_unit", unit.reshape(1).astype(np.float32))
        outputs = (
            ("codes", [*outer, layout.groups, layout.group_size], ir.DataType(code_type(form))),
            ("flags", [*outer, layout.groups], ir.DataType.UINT8),
            ("units", [*outer, 1], ir.DataType.FLOAT),
        )
        attributes = {**format_attributes(form), "per_token": int(self.arithmetic.per_token)}
        attributes["code_type"] = code_type(form)
        return g.typed_op(SDR_QUANTIZE, f"{name}/quantize", [value, scalar], outputs, DOMAIN, attributes)

    def _rotate(self, value: ir.Value, columns: int, name: str, outer: list[Dim]) -> ir.Value:
        g, size = self.g, rotation_size(columns)
        if size == 1:
            return value
        matrix = g.constant(f"hadamard_{size}", hadamard(size))
        shape: list[Dim] = [*outer, columns // size, size]
        by_block = g.constant(f"shape.rotate_{columns}", np.asarray([0, 0, columns // size, size], np.int64))
        flat = g.constant(f"shape.width_{columns}", np.asarray([0, 0, columns], np.int64))
        blocks = g.op("Reshape", f"{name}/split", [value, by_block], shape)
        turned = g.op("MatMul", f"{name}/hadamard", [blocks, matrix], shape)
        return g.op("Reshape", f"{name}/join", [turned, flat], [*outer, columns])
