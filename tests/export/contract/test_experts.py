"""Products with experts: function bodies in onnxruntime and onnx.reference against the numpy reference."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.numpy_helper import from_array
from onnx.reference import ReferenceEvaluator

from export.contract.formats.base import DOMAIN
from export.contract.formats.codebook import CodebookLayout
from export.contract.formats.mxfp4 import Mxfp4Layout
from export.contract.formats.nested import NestedLayout
from export.contract.formats.trellis import TrellisLayout
from export.contract.formats.vectors import VectorLayout
from export.contract.operators.experts import (
    EXPERT_MATMUL,
    EXPERT_PRODUCTS,
    ExpertLayout,
    expert_functions,
    expert_matmul,
    expert_operator,
)

STORED = {
    "codebook": CodebookLayout(3, 40, 24, 0, 3, 1),
    "codebook groups": CodebookLayout(4, 40, 24, 16, 6, 2),
    "codebook one expert": CodebookLayout(2, 9, 7, 0, 7, 1),
    "trellis": TrellisLayout(3, 40, 24, 8, 6),
    "trellis two books": TrellisLayout(2, 300, 24, 8, 3),
    "vectors": VectorLayout(4, 40, 24, 2, 1, 6),
    "mxfp4": Mxfp4Layout(4, 40, 24),
}


def layouts() -> dict[str, ExpertLayout]:
    found = {n: ExpertLayout(1 if "one expert" in n else 4, s.K, s.N, s) for n, s in STORED.items()}
    return found | {"float32": ExpertLayout(4, 40, 24, None), "float16": ExpertLayout(4, 40, 24, None)}


LAYOUTS = layouts()


def arrays_of(name: str, seed: int) -> list[np.ndarray]:
    layout, rng = LAYOUTS[name], np.random.default_rng(seed)
    if layout.stored is None:
        return [rng.standard_normal((layout.N, layout.K)).astype(name)]
    return [layout.stored.random(part, rng, 0.1) for part in layout.parts()]


def one_op_model(layout: ExpertLayout, arrays: list[np.ndarray], inputs: int) -> onnx.ModelProto:
    scheme = arrays[0].dtype.name if layout.stored is None else layout.stored.SCHEME
    names = list(layout.parts())
    node = helper.make_node(layout.operator, ["X", "expert", *names], ["Y"], domain=DOMAIN, **layout.attributes())
    x = helper.make_tensor_value_info("X", TensorProto.FLOAT, ["batch", "tokens", inputs, layout.K])
    expert = helper.make_tensor_value_info("expert", TensorProto.INT64, ["batch", "tokens", "k"])
    y = helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["batch", "tokens", "k", layout.rows])
    stored = [from_array(array, name) for name, array in zip(names, arrays)]
    graph = helper.make_graph([node], "experts", [x, expert], [y], stored)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, 1)]
    functions = expert_functions(frozenset([scheme]))
    return helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=11)


@settings(max_examples=40)
@given(st.sampled_from(sorted(LAYOUTS)), st.integers(0, 2**31), st.booleans(), st.integers(1, 3), st.integers(1, 9))
def test_bodies_match_the_reference(name, seed, one_input, k, tokens):
    layout, rng = LAYOUTS[name], np.random.default_rng(seed)
    arrays = arrays_of(name, seed)
    expert = rng.integers(0, layout.experts, (2, tokens, k))
    x = rng.standard_normal((2, tokens, 1 if one_input else k, layout.K)).astype(np.float32)
    model = one_op_model(layout, arrays, x.shape[2])
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"X": x, "expert": expert})
    expected = expert_matmul(x, expert, layout, *arrays)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max() + 1e-6)


@pytest.mark.parametrize("name", LAYOUTS)
def test_checker_and_reference_evaluator_accept_every_format(name):
    layout, arrays = LAYOUTS[name], arrays_of(name, 1)
    expert = np.array([[[0, layout.experts - 1], [0, 0], [layout.experts - 1, 0]]])
    x = np.random.default_rng(0).standard_normal((1, 3, 2, layout.K)).astype(np.float32)
    model = one_op_model(layout, arrays, 2)
    onnx.checker.check_model(model, full_check=True)
    (found,) = ReferenceEvaluator(model).run(None, {"X": x, "expert": expert})
    expected = expert_matmul(x, expert, layout, *arrays)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_reference_takes_the_rows_of_the_picked_expert():
    """By hand: expert e of two has the weights e + 1 everywhere."""
    weight = np.repeat(np.array([[1.0], [2.0]], np.float32), 3, axis=0) * np.ones((1, 2), np.float32)
    layout = ExpertLayout(2, 2, 6, None)
    found = expert_matmul(np.ones((1, 1, 1, 2), np.float32), np.array([[[1, 0]]]), layout, weight)
    np.testing.assert_array_equal(found, [[[[4, 4, 4], [2, 2, 2]]]])


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"experts": 5}, "multiple of experts"),
        ({"experts": 0}, "experts must be 1"),
        ({"experts": 4.0}, "whole number"),
        ({"experts": True}, "whole number"),
        ({"rows_per_codebook": 4}, "must divide the 6 rows"),
        ({"rows_per_scale": 24}, "must divide the 6 rows"),
    ],
)
def test_experts_that_share_or_do_not_fit_are_refused(attributes, message):
    given = {**CodebookLayout(3, 40, 24).attributes(), "experts": 4, **attributes}
    with pytest.raises((TypeError, ValueError), match=message):
        ExpertLayout.of("ExpertCodebookMatMul", given)


@pytest.mark.parametrize("wrong", [-1, 4, 2**40])
def test_an_expert_out_of_range_is_refused(wrong):
    layout = LAYOUTS["float32"]
    x = np.ones((1, 1, 1, 40), np.float32)
    with pytest.raises(ValueError, match=r"outside 0\.\.3"):
        expert_matmul(x, np.array([[[0, wrong]]]), layout, np.zeros((24, 40), np.float32))


def test_attributes_come_back():
    for name, layout in LAYOUTS.items():
        assert ExpertLayout.of(layout.operator, layout.attributes()) == layout, name
    assert LAYOUTS["float32"].operator == EXPERT_MATMUL


def test_a_format_that_does_not_lie_by_rows_has_no_such_product():
    assert "ExpertNestedMatMul" not in EXPERT_PRODUCTS
    with pytest.raises(ValueError, match="nested does not lie by rows"):
        expert_operator(NestedLayout(4, 40, 24, 2, 6))
    assert expert_functions(frozenset({"nested"})) == []
