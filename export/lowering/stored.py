"""What the passes have in common: tensors that are only made when they are written, and what they leave as it was."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir


@dataclass(frozen=True)
class Kept:
    """A node that stays in the standard form, because the runtime's own operator cannot hold it."""

    name: str
    operator: str
    reason: str


def lazy(graph: ir.Graph, name: str, dtype, shape, make) -> ir.Value:  # type: ignore[no-untyped-def]
    """A new initializer; make() gives its array when the model is saved."""
    kind = ir.DataType.from_numpy(np.dtype(dtype))
    tensor = ir.LazyTensor(lambda: ir.Tensor(make(), name=name), dtype=kind, shape=ir.Shape(shape), name=name)
    value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(kind), const_value=tensor)
    graph.register_initializer(value)
    return value
