"""The ONNX function bodies against the numpy reference, in onnxruntime and in onnx.reference, on random layouts."""

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
from export.contract.formats.codebook import (
    CODEBOOK_GATHER,
    CODEBOOK_MATMUL,
    CodebookLayout,
    codebook_gather,
    codebook_matmul,
)
from export.contract.packing import pack


def random_matrix(layout: CodebookLayout, seed: int):
    rng = np.random.default_rng(seed)
    codes = pack(rng.integers(0, 1 << layout.bits, (layout.N, layout.K), dtype=np.uint8), layout.bits)
    codebook = rng.integers(-128, 128, layout.codebook_shape).astype(np.int8)
    scale = rng.random(layout.scale_shape).astype(rng.choice([np.float16, np.float32]))
    return codes, codebook, scale


def one_op_model(layout: CodebookLayout, arrays) -> onnx.ModelProto:
    names = ["codes", "codebook", "scale"]
    nodes = [
        helper.make_node(CODEBOOK_MATMUL, ["X", *names], ["Y"], domain=DOMAIN, **layout.attributes()),
        helper.make_node(CODEBOOK_GATHER, ["ids", *names], ["E"], domain=DOMAIN, **layout.attributes()),
    ]
    graph = helper.make_graph(
        nodes,
        "ops",
        [
            helper.make_tensor_value_info("X", TensorProto.FLOAT, ["batch", "tokens", layout.K]),
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "tokens"]),
        ],
        [
            helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["batch", "tokens", layout.N]),
            helper.make_tensor_value_info("E", TensorProto.FLOAT, ["batch", "tokens", layout.K]),
        ],
        [from_array(array, name) for name, array in zip(names, arrays)],
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, functions=CodebookLayout.function_bodies(), opset_imports=opsets, ir_version=11)


LAYOUTS = st.builds(
    CodebookLayout,
    bits=st.integers(1, 8),
    K=st.integers(1, 600),
    N=st.integers(1, 12),
    group_size=st.sampled_from([0, 1, 16, 64, 300]),
    rows_per_codebook=st.integers(1, 13),
    rows_per_scale=st.integers(1, 13),
)


@settings(max_examples=40, deadline=None)
@given(LAYOUTS, st.integers(0, 2**31))
def test_bodies_match_the_reference(layout, seed):
    arrays = random_matrix(layout, seed)
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, 3, layout.K)).astype(np.float32)
    ids = rng.integers(0, layout.N, (2, 3))
    model = one_op_model(layout, arrays)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    y, e = session.run(None, {"X": x, "ids": ids})
    expected = codebook_matmul(x, layout, *arrays)
    # float32 sums in another order: rounding grows with the number of terms, 1e-6 of the largest product sum is ample
    bound = 1e-6 * np.abs(x).max() * 128 * layout.K + 1e-6
    np.testing.assert_allclose(y, expected, rtol=0, atol=bound)
    np.testing.assert_array_equal(e, codebook_gather(ids, layout, *arrays))


@pytest.mark.parametrize("bits", range(1, 9))
def test_checker_and_reference_evaluator_accept_every_width(bits):
    layout = CodebookLayout(bits, 300, 5, 128, 2, 1)
    arrays = random_matrix(layout, bits)
    model = one_op_model(layout, arrays)
    onnx.checker.check_model(model, full_check=True)
    x = np.random.default_rng(0).standard_normal((1, 2, 300)).astype(np.float32)
    ids = np.array([[4, 0]])
    y, e = ReferenceEvaluator(model).run(None, {"X": x, "ids": ids})
    np.testing.assert_allclose(y, codebook_matmul(x, layout, *arrays), rtol=1e-5, atol=1e-3)
    np.testing.assert_array_equal(e, codebook_gather(ids, layout, *arrays))
