"""Bottlenecks in standard operators, for the graph that stock runtimes read (stock.py).

At each end of a block where some adapter has one: y + (f(x @ a + a_bias) @ b + b_bias), whose numbers are inputs of the
graph with defaults of rank 0 and a bias of zeros, one set for each place and activation that occurs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.adapters.factors import Factors
from export.adapters.sites import NORMED, OUTPUT, BlockEnd
from export.adapters.store import NO_ACTIVATION, Adapter
from export.contract.errors import InputError

_OPERATORS: dict[str, tuple[str, Mapping[str, str]]] = {
    "relu": ("Relu", {}), "gelu": ("Gelu", {}), "gelu_tanh": ("Gelu", {"approximate": "tanh"}), "tanh": ("Tanh", {}),
    "sigmoid": ("Sigmoid", {}), "silu": ("Sigmoid", {}),
}  # fmt: skip
Form = tuple[str, str]  # place and activation


def bottleneck_parameters(adapter: Adapter) -> dict[str, np.ndarray]:
    """The graph's inputs, float32 a [columns, rank], a_bias [rank], b [rank, rows] and b_bias [rows]."""
    found: dict[str, np.ndarray] = {}
    for module, term in adapter.terms.items():
        if term.biases is not None:
            a, b = term.floats()
            arrays = (np.ascontiguousarray(a.T), term.biases[0], b, term.biases[1])
            found |= dict(zip(_names(module, _form(adapter, term)), arrays))
    return found


def add_bottlenecks(model: onnx.ModelProto, ends: Sequence[BlockEnd], adapters: Sequence[Adapter]) -> None:
    """Change the graph. Raises InputError where its nodes are not those that the ends name."""
    wanted: dict[str, dict[Form, int]] = {}
    for adapter in adapters:
        for module, term in adapter.terms.items():
            if term.biases is not None:
                wanted.setdefault(module, {})[_form(adapter, term)] = term.a.shape[1]
    here = [end for end in ends if end.module in wanted]
    for module, forms in wanted.items():
        for form, width in forms.items():
            _add_inputs(model.graph, module, form, width)
    by_add, by_norm = {end.add: end for end in here}, {end.norm.name: end for end in here}
    nodes: list[onnx.NodeProto] = []
    changed = 0
    for node in model.graph.node:
        end, norm_end = by_add.get(node.name), by_norm.get(node.name)
        if end is not None:
            added, value = _terms(end, end.output, [form for form in wanted[end.module] if form[0] != NORMED])
            nodes += added
            node.input[list(node.input).index(end.output)] = value
        elif norm_end is not None:
            forms_here = [form for form in wanted[norm_end.module] if form[0] == NORMED]
            if forms_here:
                first = onnx.NodeProto()
                first.CopyFrom(node)
                first.name, first.output[0] = f"{node.name}/before_adapter", _normed(norm_end)
                nodes.append(first)
            added, value = _terms(norm_end, norm_end.sum, forms_here)
            nodes += added
            node.input[0] = value
        changed += (end is not None) + (norm_end is not None)
        nodes.append(node)
    if changed != 2 * len(here):
        raise InputError("model.onnx: its nodes have no names of their own")
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _form(adapter: Adapter, term: Factors) -> Form:
    return term.place, adapter.activation


def _names(module: str, form: Form) -> list[str]:
    return [f"{module}.{form[0]}.{form[1]}.{part}" for part in ("a", "a_bias", "b", "b_bias")]


def _normed(end: BlockEnd) -> str:
    return f"{end.sum}.normed"


def _add_inputs(graph: onnx.GraphProto, module: str, form: Form, width: int) -> None:
    rank = f"rank_of.{module}.{form[0]}.{form[1]}"
    shapes: list[list[str | int | None]] = [[width, rank], [rank], [rank, width], [width]]
    for name, shape in zip(_names(module, form), shapes):
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        empty = np.zeros([size if isinstance(size, int) else 0 for size in shape], np.float32)
        graph.initializer.append(numpy_helper.from_array(empty, name))


def _terms(end: BlockEnd, value: str, forms: Sequence[Form]) -> tuple[list[onnx.NodeProto], str]:
    """Nodes that add the terms of these forms to a value, and what the sum is called."""
    nodes: list[onnx.NodeProto] = []
    for form in forms:
        a, a_bias, b, b_bias = _names(end.module, form)
        read = {NORMED: _normed(end), OUTPUT: end.output}.get(form[0], end.residual)
        stem, at = f"{end.add}/{form[0]}_{form[1]}", f"{end.sum}.{form[0]}.{form[1]}"
        steps: list[tuple[str, list[str], Mapping[str, str]]] = [("MatMul", [read, a], {}), ("Add", ["", a_bias], {})]
        if form[1] != NO_ACTIVATION:
            operator, attributes = _OPERATORS[form[1]]
            steps.append((operator, [""], attributes))
        if form[1] == "silu":
            steps.append(("Mul", ["", f"{at}.1"], {}))
        steps += [("MatMul", ["", b], {}), ("Add", ["", b_bias], {}), ("Add", ["", value], {})]
        last = ""
        for i, (operator, inputs, attributes) in enumerate(steps):
            made = f"{at}.{i}"
            given = [name or last for name in inputs]
            nodes.append(helper.make_node(operator, given, [made], f"{stem}/{i}", **attributes))
            last = made
        value = last
    return nodes, value
