"""A model.onnx that is read without the onnx package says what that package makes of it."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from export.artefacts.onnx_file import by_onnx, plain
from export.artefacts.onnx_file.records import ModelRecord
from export.artefacts.onnx_file.types import dtype_of, is_common
from export.artefacts.onnx_file.wire import Unclear, fields

names = st.text(st.characters(codec="utf-8"), max_size=5)
int64s = st.integers(-(2**63), 2**63 - 1)
float32s = st.floats(width=32, allow_nan=False)
attribute_values = st.one_of(
    int64s, float32s, names, st.lists(int64s, min_size=1, max_size=4), st.lists(float32s, min_size=1, max_size=4),
    st.lists(names, min_size=1, max_size=3),
)  # fmt: skip
dims = st.lists(st.one_of(int64s, names.filter(bool), st.none()), max_size=3)


@st.composite
def models(draw) -> onnx.ModelProto:
    nodes = [
        helper.make_node(draw(names), draw(st.lists(names, max_size=3)), draw(st.lists(names, max_size=2)),
                         name=draw(names), domain=draw(names), doc_string=draw(names))
        for _ in range(draw(st.integers(0, 3)))
    ]  # fmt: skip
    for node in nodes:
        for name in draw(st.lists(names, max_size=3, unique=True)):
            node.attribute.append(helper.make_attribute(name, draw(attribute_values)))
    tensors = []
    for _ in range(draw(st.integers(0, 3))):
        kind = draw(st.sampled_from(["float32", "float16", "int8", "int64", "bool", "uint8", "int32"]))
        array = np.array(draw(st.lists(st.integers(0, 1), max_size=3)), kind)
        tensor = numpy_helper.from_array(array, draw(names))
        if draw(st.booleans()):
            tensor = helper.make_tensor(draw(names), TensorProto.FLOAT, [2], [draw(float32s), draw(float32s)])
        if draw(st.booleans()):
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key in draw(st.lists(names, max_size=3)):
                tensor.external_data.add(key=key, value=draw(names))
        tensors.append(tensor)
    kinds = st.sampled_from([1, 7, 10, 16])
    values = [[helper.make_tensor_value_info(draw(names), draw(kinds), draw(dims))] for _ in range(3)]
    graph = helper.make_graph(nodes, draw(names), values[0], values[1], tensors, value_info=values[2])
    opsets = [helper.make_opsetid(draw(names), draw(st.integers(0, 2**40))) for _ in range(2)]
    model = helper.make_model(graph, opset_imports=opsets, producer_name=draw(names))
    helper.set_model_props(model, {draw(names): draw(names) for _ in range(2)})
    return model


def facts(model: ModelRecord) -> str:
    """Everything but where arrays come from; as text, in which NaN is NaN."""
    return repr(model._replace(tensors=[one._replace(raw=None, source=None) for one in model.tensors]))


def arrays(model: ModelRecord) -> list[bytes]:
    """Those that lie in the file."""
    return [by_onnx.array_of(one.source).tobytes() for one in model.tensors if one.external is None]


@settings(max_examples=150, deadline=None)
@given(models())
def test_a_usual_file_is_read_as_onnx_reads_it(model):
    data = model.SerializeToString()
    found, expected = plain.records_of(data), by_onnx.records_of(by_onnx.parsed(data), 100)
    assert found is not None and facts(found) == facts(expected) and arrays(found) == arrays(expected)
    for one in found.tensors:
        if one.external is None and one.raw and is_common(one.data_type):
            array = np.frombuffer(bytes(one.raw), dtype_of(one.data_type))
            assert array.tobytes() == by_onnx.array_of(one.source).tobytes()


@settings(max_examples=400, deadline=None)
@given(models(), st.data())
def test_a_damaged_file_is_none_or_what_onnx_makes_of_it(model, data):
    content = bytearray(model.SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        if data.draw(st.booleans()):
            content[place] = data.draw(st.integers(0, 255))
        else:
            content[place : place + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
        if not content:
            return
    found = plain.records_of(bytes(content))
    if found is None:
        return
    try:
        expected = by_onnx.records_of(by_onnx.parsed(bytes(content)), 100)
    except Exception:  # broken in a part that nothing is read from, such as a comment
        return
    assert facts(found) == facts(expected)


@given(st.binary(max_size=40))
def test_fields_of_any_bytes_end(content):
    with suppress(Unclear):
        assert all(len(value) <= len(content) for _, value in fields(memoryview(content)) if not isinstance(value, int))


@pytest.mark.parametrize("number", range(-1, 30))
def test_types_are_those_of_onnx(number):
    try:
        expected = np.dtype(helper.tensor_dtype_to_np_dtype(number))
    except (KeyError, TypeError):
        with pytest.raises((KeyError, TypeError)):
            dtype_of(number)
        return
    assert dtype_of(number) == expected


def test_what_is_rare_is_left_to_onnx():
    """Subgraphs, tensors as attributes, references to a function's attributes, other kinds of values."""
    graph = helper.make_graph([], "g", [], [])
    plain_node = helper.make_node("A", [], [])
    assert plain.records_of(helper.make_model(helper.make_graph([plain_node], "g", [], [])).SerializeToString())
    for value in (graph, numpy_helper.from_array(np.ones(2))):
        node = helper.make_node("A", [], [], body=value)
        assert plain.records_of(helper.make_model(helper.make_graph([node], "g", [], [])).SerializeToString()) is None
    node = helper.make_node("A", [], [])
    node.attribute.add(name="a", ref_attr_name="b", type=onnx.AttributeProto.INT)
    assert plain.records_of(helper.make_model(helper.make_graph([node], "g", [], [])).SerializeToString()) is None
    sequence = helper.make_tensor_sequence_value_info("s", 1, None)
    assert plain.records_of(helper.make_model(helper.make_graph([], "g", [sequence], [])).SerializeToString()) is None
    assert plain.records_of(b"\x08") is None and plain.records_of(b"\x0b\x0c") is None
