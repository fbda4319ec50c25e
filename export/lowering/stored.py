"""Stored tensors of a graph that are only made when they are written."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


def lazy(graph: ir.Graph, name: str, dtype, shape, make) -> ir.Value:  # type: ignore[no-untyped-def]
    """A new initializer; make() gives its array when the model is saved."""
    kind = ir.DataType.from_numpy(np.dtype(dtype))
    tensor = ir.LazyTensor(lambda: ir.Tensor(make(), name=name), dtype=kind, shape=ir.Shape(shape), name=name)
    value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(kind), const_value=tensor)
    graph.register_initializer(value)
    return value
