"""A thin layer over onnx_ir: nodes with readable names, and a shape on every value. Knows nothing of models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

Dim = int | str


class GraphWriter:
    """Collects the nodes and initializers of one graph in order."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = {}
        self.inputs: list[ir.Value] = []
        self.outputs: list[ir.Value] = []

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[Dim]) -> ir.Value:
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
        self.inputs.append(value)
        return value

    def output(self, value: ir.Value, name: str) -> None:
        value.name = name
        self.outputs.append(value)

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        """A small initializer that stays inside model.onnx (shape arithmetic, frequencies)."""
        return self._initializer(name, ir.Tensor(array, name=name))

    def lazy(self, name: str, dtype: Any, shape: Sequence[int], load: Callable[[], np.ndarray]) -> ir.Value:
        """A weight that is read when the file is written. The same name gives the same value (tied weights)."""
        if name in self.initializers:
            return self.initializers[name]
        tensor = ir.LazyTensor(
            lambda: ir.Tensor(np.ascontiguousarray(load()), name=name),
            dtype=ir.DataType.from_numpy(np.dtype(dtype)),
            shape=ir.Shape(shape),
            name=name,
        )
        return self._initializer(name, tensor)

    def _initializer(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        if name not in self.initializers:
            shape = ir.Shape(list(tensor.shape))  # type: ignore[arg-type]
            value = ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
            self.initializers[name] = value
        return self.initializers[name]

    def op(
        self,
        op_type: str,
        name: str,
        inputs: Sequence[ir.Value | None],
        shapes: Sequence[Any],
        dtype: ir.DataType = ir.DataType.FLOAT,
        domain: str = "",
        attributes: Mapping[str, Any] | None = None,
        **named: Any,
    ) -> Any:
        """Append a node called `name`. `shapes` is the output's shape, or a list of shapes for several outputs.

        Returns the output value, or a tuple of them.
        """
        several = bool(shapes) and not isinstance(shapes[0], int | str)
        all_shapes: Sequence[Any] = shapes if several else [shapes]
        suffixes = [f"/output_{i}" for i in range(len(all_shapes))]
        outputs = [
            ir.Value(name=name + suffix, shape=ir.Shape(shape), type=ir.TensorType(dtype))
            for suffix, shape in zip(suffixes, all_shapes)
        ]
        node = ir.node(op_type, inputs, {**(attributes or {}), **named}, domain=domain, outputs=outputs, name=name)
        self.nodes.append(node)
        return tuple(outputs) if several else outputs[0]

    def typed_op(
        self,
        op_type: str,
        name: str,
        inputs: Sequence[ir.Value | None],
        outputs: Sequence[tuple[str, Sequence[Dim], ir.DataType]],
        domain: str,
        attributes: Mapping[str, Any],
    ) -> tuple[ir.Value, ...]:
        """Append a node whose outputs have names, shapes and element types of their own."""
        values = tuple(
            ir.Value(name=f"{name}/{suffix}", shape=ir.Shape(shape), type=ir.TensorType(dtype))
            for suffix, shape, dtype in outputs
        )
        self.nodes.append(ir.node(op_type, inputs, dict(attributes), domain=domain, outputs=values, name=name))
        return values

    def model(
        self, name: str, opsets: dict[str, int], ir_version: int, functions: Sequence[ir.Function], producer: str
    ) -> ir.Model:
        graph = ir.Graph(
            self.inputs,
            self.outputs,
            nodes=self.nodes,
            initializers=list(self.initializers.values()),
            opset_imports=opsets,
            name=name,
        )
        return ir.Model(graph, ir_version=ir_version, functions=functions, producer_name=producer)
