"""Function bodies written in Python compute what the same Python computes, with every node once and a name for it."""

from __future__ import annotations

import operator
import subprocess
import sys

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from export.contract.body import Body, function_proto

ARITHMETIC = {"+": operator.add, "-": operator.sub, "*": operator.mul, "//": operator.floordiv, "%": operator.mod}
BITS = {"&": operator.and_, "|": operator.or_, "<<": operator.lshift, ">>": operator.rshift}


def function(write, attributes=(), outputs=("Y",)) -> onnx.FunctionProto:
    return function_proto("test", 23, "Made", ("x",), attributes, write, outputs)


def run(proto: onnx.FunctionProto, x: np.ndarray, **attributes) -> list[np.ndarray]:
    """The function as a model's only node, checked and run by onnx.reference."""
    helper, kind = onnx.helper, onnx.helper.np_dtype_to_tensor_dtype(x.dtype)
    node = helper.make_node(proto.name, ["x"], list(proto.output), domain="test", **attributes)
    results = [helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None) for name in proto.output]
    graph = helper.make_graph([node], "one", [helper.make_tensor_value_info("x", kind, list(x.shape))], results)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("test", 1)]
    model = helper.make_model(graph, functions=[proto], opset_imports=opsets, ir_version=11)
    return ReferenceEvaluator(model).run(None, {"x": x})


def operators(proto: onnx.FunctionProto) -> list[str]:
    return sorted(node.op_type for node in proto.node)


@given(st.lists(st.tuples(st.sampled_from(sorted(ARITHMETIC)), st.integers(1, 9), st.booleans()), max_size=8))
def test_arithmetic_computes_what_python_makes_of_it(steps):
    """Chains on integers, with a constant or an earlier value as the second operand."""

    def write(x, positive):
        before, value = x, x + 1
        for sign, number, constant in steps:
            if sign in ("//", "%"):
                before, value = value, ARITHMETIC[sign](positive(value), number)
            else:
                before, value = value, ARITHMETIC[sign](value, number if constant else before)
        return value

    x = np.arange(-2, 5)
    found = run(function(lambda b, x: write(x, b.Abs)), x)[0]
    np.testing.assert_array_equal(found, write(x, np.abs))


@given(st.lists(st.tuples(st.sampled_from(sorted(BITS)), st.integers(0, 7)), max_size=8))
def test_bits_move_as_in_python(steps):
    def write(x, constant):
        for sign, number in steps:
            x = BITS[sign](x, constant(number))
        return x

    x = np.arange(0, 200, 7).astype(np.uint32)
    proto = function(lambda b, x: write(b.Identity(x), lambda n: b.constant(n, "uint32")))
    np.testing.assert_array_equal(run(proto, x)[0], write(x, np.uint32))


def test_numbers_on_the_left_and_in_lists_are_constants():
    proto = function(lambda b, x: b.Concat(3 * x, [8] // x, -x, [1, 2], axis=0))
    np.testing.assert_array_equal(run(proto, np.array([2, 5]))[0], [6, 15, 4, 1, -2, -5, 1, 2])


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32", "int64", "uint32", "uint64", "float32", "bool"])
def test_types_go_by_their_names(dtype):
    found = run(function(lambda b, x: x.astype(dtype)), np.array([0.0, 1.0, 3.0], np.float32))[0]
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, np.array([0, 1, 3]).astype(dtype))


def test_attributes_of_the_function_arrive_in_its_nodes():
    def write(b: Body, x):
        return ((x + b.attribute("more")) * b.float_attribute("times").astype("int64")).astype(b.reference("kind"))

    proto = function(write, ("more", "times", "kind"))
    assert list(proto.attribute) == ["more", "times", "kind"]
    found = run(proto, np.array([1, 2]), more=4, times=2.5, kind=onnx.TensorProto.INT8)[0]
    assert found.dtype == np.int8
    np.testing.assert_array_equal(found, [10, 12])
    with pytest.raises(KeyError, match="less"):
        function(lambda b, x: x + b.attribute("less"), ("more",))


def test_a_node_that_is_written_twice_is_one_and_what_nobody_needs_is_left_out():
    def write(b: Body, x):
        b.Exp(x.astype("float32"))
        return b.Reshape(x + 1, [1, -1]) * (x + 1), b.Slice(x, [1], [2]) + 1

    proto = function(write, outputs=("Y", "Z"))
    assert operators(proto) == ["Add", "Add", *["Constant"] * 4, "Mul", "Reshape", "Slice"]
    y, z = run(proto, np.array([4, 7, 9]))
    np.testing.assert_array_equal(y, [[25, 64, 100]])
    np.testing.assert_array_equal(z, [8])


def test_an_integer_and_a_float_of_the_same_value_are_two_constants():
    proto = function(lambda b, x: (x + 1).astype("float32") + 1.0)
    assert operators(proto) == ["Add", "Add", "Cast", "Constant", "Constant"]
    assert run(proto, np.array([1]))[0] == [3.0]


def test_names_are_the_given_ones_and_no_value_shares_one():
    def write(b: Body, x):
        sums = b.Add(x, 1, name="sums")
        return b.named("other", sums), b.named("sums", sums * 2), b.named("Y", sums * 3) + b.named("x", sums * 4)

    proto = function(write, outputs=("Y", "Z", "sums"))
    made = [node.output[0] for node in proto.node]
    assert len({*made, "x"}) == len(made) + 1 and {"Y", "Z", "sums"} < set(made)
    assert [int(value[0]) for value in run(proto, np.array([1]))] == [2, 4, 14]
    proto = function(lambda b, x: b.Mul(b.Add(x, x, name="twice"), x))
    assert [node.output[0] for node in proto.node] == ["twice", "Y"]


def test_an_operator_is_no_attribute_of_another_name():
    with pytest.raises(AttributeError, match="gather"):
        function(lambda b, x: b.gather(x))


def test_a_raspberry_pi_needs_no_onnx_for_it():
    code = "import sys, export.contract.body, export.contract.body_parts; print('onnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
