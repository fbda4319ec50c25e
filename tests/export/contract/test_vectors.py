"""The operator of vector codebooks: reference, function body, expansion."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from export.contract.formats.base import DOMAIN, IR_VERSION, OPSET
from export.contract.formats.vectors import VECTOR_MATMUL, VectorLayout
from export.contract.packing import pack

LAYOUTS = st.builds(
    VectorLayout,
    bits=st.integers(1, 8),
    K=st.integers(1, 600),
    N=st.integers(1, 20),
    dimension=st.sampled_from([1, 2, 3, 4, 8]),
    books=st.integers(1, 4),
    rows_per_codebook=st.integers(1, 25),
    rows_per_scale=st.integers(1, 3),
)


def random_parts(layout: VectorLayout, seed: int):
    rng = np.random.default_rng(seed)
    rows, books, _ = layout.codes_shape
    codes = pack(rng.integers(0, 1 << layout.bits, (rows * books, layout.vectors)), layout.bits)
    limit = 127 // layout.books
    book = rng.integers(-limit, limit + 1, layout.codebook_shape).astype(np.int8)
    scale = rng.random(layout.scale_shape).astype(rng.choice([np.float16, np.float32]))
    return codes.reshape(layout.codes_shape), book, scale


def one_node(layout: VectorLayout, parts) -> onnx.ModelProto:
    names = ["codes", "codebook", "scale"]
    node = helper.make_node(VECTOR_MATMUL, ["x", *names], ["y"], domain=DOMAIN, **layout.attributes())
    graph = helper.make_graph(
        [node], "one", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["tokens", layout.K])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["tokens", layout.N])],
        [onnx.numpy_helper.from_array(array, name) for array, name in zip(parts, names)],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(
        graph, functions=VectorLayout.function_bodies(), opset_imports=opsets, ir_version=IR_VERSION
    )


@settings(max_examples=40)
@given(LAYOUTS, st.integers(0, 2**31))
def test_reference_is_the_formula_and_expansion_is_exact(layout, seed):
    codes, book, scale = random_parts(layout, seed)
    weights, code = layout.dequantized(codes, book, scale), layout.unpack_codes(codes)
    rng = np.random.default_rng(seed)
    for n, k in zip(rng.integers(0, layout.N, 20), rng.integers(0, layout.K, 20)):
        j, i = divmod(k, layout.dimension)
        total = sum(int(book[n // layout.rows_per_codebook, m, code[n, m, j], i]) for m in range(layout.books))
        assert weights[n, k] == np.float32(total) * np.float32(scale[n // layout.rows_per_scale, 0])
    wide, parts = layout.as_codebook(codes, book, scale)
    np.testing.assert_array_equal(wide.dequantized(*parts), weights)


@settings(max_examples=30)
@given(LAYOUTS, st.integers(0, 2**31))
@example(VectorLayout(8, 1100, 3, 4), 0)  # more than one block of codes
@example(VectorLayout(3, 5, 4, 8, books=2, rows_per_codebook=4), 1)  # less than one vector
def test_function_body(layout, seed):
    parts = random_parts(layout, seed)
    model = one_node(layout, parts)
    onnx.checker.check_model(model, full_check=True)
    x = np.random.default_rng(seed).standard_normal((3, layout.K)).astype(np.float32)
    weights = layout.dequantized(*parts)
    expected, bound = x @ weights.T, np.abs(x) @ np.abs(weights).T
    found = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
    # float32 sums in another order
    assert np.all(np.abs(found - expected) <= 2e-6 * bound + 1e-30)
    if layout.K < 100:  # onnx's own evaluator is slow
        assert np.all(np.abs(ReferenceEvaluator(model).run(None, {"x": x})[0] - expected) <= 2e-6 * bound + 1e-30)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"bits": 9}, "bits must be 1 to 8"),
        ({"dimension": 0}, "dimension must be 1 to 64"),
        ({"books": 17}, "books must be 1 to 16"),
        ({"N": 2**31}, "N must be 1 to"),
        ({"bits": 8, "dimension": 64, "rows_per_codebook": 1, "N": 2**20}, "too many entries"),
    ],
)
def test_impossible_layouts_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(VectorLayout(4, 64, 8, 2), **change)


def test_arrays_are_checked():
    layout = VectorLayout(4, 64, 8, 2, books=2, rows_per_codebook=8)
    codes, book, scale = random_parts(layout, 0)
    for parts, message in (
        ((codes[:, :1], book, scale), "codes is uint8"),
        ((codes, book[..., :1], scale), "codebook is int8"),
        ((codes, book, scale[:1]), "scale is"),
        ((codes, np.full_like(book, 64), scale), "add up to more than 127"),
    ):
        with pytest.raises(ValueError, match=message):
            layout.check(*parts)
