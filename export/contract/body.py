"""Writes the function body of an operator: standard ONNX operators as Python. Knows nothing about the operators.

    def write(b: Body, x: Value, codes: Value) -> Value:
        columns = b.attribute("K")
        return b.Gather(x, (codes.astype("int64") + 1) // columns, axis=1, name="picked")

A Value stands for what a node will compute. Operators are methods of the body by their ONNX names, with inputs in order
and attributes by keyword; arithmetic is written as in Python. A Python number or list of integers where a Value can
stand is a constant: int64 or float32. The same operator on the same inputs is one node, whoever writes it, and what
the outputs do not need is left out. Only function_proto() imports onnx: a Raspberry Pi has numpy. scan() writes a loop
over rows, whose own body is written in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Union

import numpy as np

if TYPE_CHECKING:
    import onnx

Operand = Union["Value", int, float, list[int]]


@dataclass(frozen=True)
class Attribute:
    """An attribute of the function, as the value of a node's attribute. kind: INT or FLOAT."""

    name: str
    kind: str = "INT"


@dataclass(frozen=True, eq=False)
class Value:
    """An input of the function or a node's only output; arithmetic on it adds nodes to its body."""

    body: Body

    def astype(self, dtype: str | Attribute) -> Value:
        """Cast to the numpy type of this name, or to the one whose ONNX number the attribute holds."""
        return self.body.Cast(self, to=dtype)

    def __add__(self, other: Operand) -> Value:
        return self.body.Add(self, other)

    def __sub__(self, other: Operand) -> Value:
        return self.body.Sub(self, other)

    def __mul__(self, other: Operand) -> Value:
        return self.body.Mul(self, other)

    def __rmul__(self, other: Operand) -> Value:
        return self.body.Mul(other, self)

    def __truediv__(self, other: Operand) -> Value:
        return self.body.Div(self, other)

    def __floordiv__(self, other: Operand) -> Value:
        """Of integers that are not negative: ONNX rounds towards zero."""
        return self.body.Div(self, other)

    def __rfloordiv__(self, other: Operand) -> Value:
        return self.body.Div(other, self)

    def __mod__(self, other: Operand) -> Value:
        return self.body.Mod(self, other)

    def __neg__(self) -> Value:
        return self.body.Neg(self)

    def __lshift__(self, other: Operand) -> Value:
        return self.body.BitShift(self, other, direction="LEFT")

    def __rshift__(self, other: Operand) -> Value:
        return self.body.BitShift(self, other, direction="RIGHT")

    def __and__(self, other: Operand) -> Value:
        return self.body.BitwiseAnd(self, other)

    def __or__(self, other: Operand) -> Value:
        return self.body.BitwiseOr(self, other)


@dataclass(frozen=True, eq=False)
class Loop:
    """What scan() does for one row, as the value of a node's attribute."""

    body: Body
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]


@dataclass(frozen=True)
class Node:
    """attributes: names with an int, a float, a string, a tuple of integers, an Attribute or a Loop."""

    operator: str
    inputs: tuple[Value, ...]
    attributes: tuple[tuple[str, Any], ...]


class Body:
    """The nodes of one function in the order of their making."""

    def __init__(self, attributes: Sequence[str]) -> None:
        """attributes: names of those that the function has."""
        self._attributes = frozenset(attributes)
        self._made: dict[Node, Value] = {}
        self._names: dict[Value, str] = {}
        self._more: dict[Value, tuple[Value, ...]] = {}  # outputs of a node behind its first
        self._instead: dict[str, Value] = {}

    def __getattr__(self, operator: str) -> Callable[..., Value]:
        """The standard operator of this name, one with a single output: b.Gather(x, i, axis=1, name="rows")."""
        if not operator[0].isupper():
            raise AttributeError(operator)

        def call(*inputs: Operand, name: str = "", **attributes: Any) -> Value:
            made = self._node(operator, tuple(map(self.constant, inputs)), attributes)
            return self.named(name, made) if name else made

        return call

    def input(self, name: str) -> Value:
        """A new input of the function."""
        return self.named(name, Value(self))

    def attribute(self, name: str) -> Value:
        """int64 [], an attribute of the function."""
        if name in self._instead:
            return self._instead[name]
        return self._node("Constant", (), {"value_int": self.reference(name)})

    def replace(self, name: str, value: Value) -> None:
        """From here on attribute(name) is this value, for a part of the body that is written for another size."""
        self._instead[name] = value

    def float_attribute(self, name: str) -> Value:
        """float32 [], an attribute of the function."""
        return self._node("Constant", (), {"value_float": self.reference(name, "FLOAT")})

    def reference(self, name: str, kind: str = "INT") -> Attribute:
        """An attribute of the function to hand to a node; KeyError if the function has none of this name."""
        if name not in self._attributes:
            raise KeyError(name)
        return Attribute(name, kind)

    def constant(self, number: Operand, dtype: str = "") -> Value:
        """int64 or float32 [], or int64 [n], as a Value, then cast to dtype; a Value stays what it is."""
        if isinstance(number, Value):
            return number
        kind = {int: "value_int", float: "value_float", list: "value_ints"}[type(number)]
        made = self._node("Constant", (), {kind: number})
        return made.astype(dtype) if dtype else made

    def scan(
        self, states: Sequence[Value], rows: Sequence[Value], write: Callable[..., tuple[Value, ...]]
    ) -> tuple[Value, ...]:
        """The float32 states behind the last row, and what is made of all rows, joined along their first axis.

        write(body, *states, *row): the new states and what is made of a row of each of `rows`, in a body of its own.
        """
        inner = Body(())
        given = tuple(
            inner.input(f"{kind}_{i}") for kind, all_ in (("state", states), ("row", rows)) for i in range(len(all_))
        )
        made = write(inner, *given)
        attributes = {"body": Loop(inner, given, made), "num_scan_inputs": len(rows)}
        first = self._node("Scan", (*states, *rows), attributes)
        self._more[first] = tuple(Value(self) for _ in made[1:])
        return (first, *self._more[first])

    def several(self, operator: str, count: int, *inputs: Operand, **attributes: Any) -> tuple[Value, ...]:
        """The standard operator of this name, one with `count` outputs."""
        first = self._node(operator, tuple(map(self.constant, inputs)), attributes)
        self._more.setdefault(first, tuple(Value(self) for _ in range(count - 1)))
        return self.outputs(first)

    def outputs(self, value: Value) -> tuple[Value, ...]:
        """All that the node gives whose first output this is."""
        return (value, *self._more.get(value, ()))

    def named(self, name: str, value: Value) -> Value:
        """The value, which the file will show under this name; its first name stays."""
        self._names.setdefault(value, name)
        return value

    def needed(self, outputs: Sequence[Value]) -> list[tuple[Value, Node]]:
        """The nodes behind these values, each after those that it reads."""
        found: list[tuple[Value, Node]] = []
        wanted = set(outputs)
        for node, value in reversed(self._made.items()):
            if not wanted.isdisjoint(self.outputs(value)):
                found.append((value, node))
                wanted.update(node.inputs)
        return found[::-1]

    def names(self, outputs: dict[Value, str]) -> dict[Value, str]:
        """A name for every value, none twice: the outputs', the given one or the operator's with a number."""
        found, taken = dict(outputs), set(outputs.values())
        nodes = {own: node.operator for node, value in self._made.items() for own in self.outputs(value)}
        for i, value in enumerate([*self._names, *nodes]):
            if value not in found:
                name = self._names.get(value, f"{nodes.get(value)}_{i}")
                while name in taken:
                    name = f"{name}_{i}"
                found[value] = name
                taken.add(name)
        return found

    def _node(self, operator: str, inputs: tuple[Value, ...], attributes: dict[str, Any]) -> Value:
        fixed = {name: tuple(value) if isinstance(value, list) else value for name, value in attributes.items()}
        return self._made.setdefault(Node(operator, inputs, tuple(fixed.items())), Value(self))


def function_proto(
    domain: str, opset: int, operator: str, inputs: Sequence[str], attributes: Sequence[str],
    write: Callable[..., Value | tuple[Value, ...]], outputs: Sequence[str] = ("Y",),
) -> onnx.FunctionProto:  # fmt: skip
    """The function `operator` of `domain`, whose body write(body, *inputs) makes and whose outputs it returns.

    opset: of the standard operators.
    """
    from onnx import helper

    body = Body(attributes)
    made = write(body, *map(body.input, inputs))
    results = (made,) if isinstance(made, Value) else made
    nodes = _nodes(body, results, body.names(dict(zip(results, outputs, strict=True))))
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_function(domain, operator, list(inputs), list(outputs), nodes, opsets, list(attributes))


def _nodes(body: Body, results: Sequence[Value], names: dict[Value, str]) -> list[onnx.NodeProto]:
    from onnx import helper

    nodes = []
    for value, node in body.needed(results):
        made = [names[own] for own in body.outputs(value)]
        proto = helper.make_node(node.operator, [names[x] for x in node.inputs], made)
        proto.attribute.extend(_attribute_proto(name, given) for name, given in node.attributes)
        nodes.append(proto)
    return nodes


def _loop_proto(loop: Loop) -> onnx.GraphProto:
    """The graph for one row; its values are float32 of any shape."""
    from onnx import TensorProto, ValueInfoProto, helper

    def infos(values: Sequence[Value]) -> list[onnx.ValueInfoProto]:
        found = []
        for value in values:
            info = ValueInfoProto(name=names[value])
            info.type.tensor_type.elem_type = TensorProto.FLOAT
            found.append(info)
        return found

    names = loop.body.names({value: f"made_{i}" for i, value in enumerate(loop.outputs)})
    return helper.make_graph(_nodes(loop.body, loop.outputs, names), "row", infos(loop.inputs), infos(loop.outputs))


def _attribute_proto(name: str, value: Any) -> onnx.AttributeProto:
    from onnx import AttributeProto, helper

    if isinstance(value, Attribute):
        kind = AttributeProto.AttributeType.Value(value.kind)
        return AttributeProto(name=name, ref_attr_name=value.name, type=kind)  # type: ignore[arg-type]
    if isinstance(value, Loop):
        value = _loop_proto(value)
    if name == "to":
        value = helper.np_dtype_to_tensor_dtype(np.dtype(value))
    return helper.make_attribute(name, value)
