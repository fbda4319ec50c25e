"""The operator of trellis codes: reference, function body, expansion."""

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
from export.contract.formats.trellis import TRELLIS_MATMUL, TrellisLayout
from export.contract.packing import pack, unpack

LAYOUTS = st.integers(1, 4).flatmap(
    lambda bits: st.builds(
        TrellisLayout,
        bits=st.just(bits),
        K=st.integers(1, 600),
        N=st.integers(1, 40),
        state_bits=st.integers(bits + 1, min(12, 8 * bits)),
        rows_per_codebook=st.integers(1, 50),
        rows_per_scale=st.integers(1, 3),
    )
)


def random_parts(layout: TrellisLayout, seed: int):
    rng = np.random.default_rng(seed)
    codes = pack(rng.integers(0, 1 << layout.bits, (layout.N, layout.K)), layout.bits)
    book = rng.integers(-127, 128, layout.codebook_shape).astype(np.int8)
    return codes, book, rng.random(layout.scale_shape).astype(rng.choice([np.float16, np.float32]))


def one_node(layout: TrellisLayout, parts) -> onnx.ModelProto:
    names = ["codes", "codebook", "scale"]
    node = helper.make_node(TRELLIS_MATMUL, ["x", *names], ["y"], domain=DOMAIN, **layout.attributes())
    graph = helper.make_graph(
        [node], "one", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["tokens", layout.K])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["tokens", layout.N])],
        [onnx.numpy_helper.from_array(array, name) for array, name in zip(parts, names)],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(
        graph, functions=TrellisLayout.function_bodies(), opset_imports=opsets, ir_version=IR_VERSION
    )


@settings(max_examples=40)
@given(LAYOUTS, st.integers(0, 2**31))
def test_reference_is_the_formula_and_expansion_is_exact(layout, seed):
    codes, book, scale = random_parts(layout, seed)
    weights, code = layout.dequantized(codes, book, scale), unpack(codes, layout.bits, layout.K).astype(int)
    rng = np.random.default_rng(seed)
    for n, k in zip(rng.integers(0, layout.N, 20), rng.integers(0, layout.K, 20)):
        first = n - n % layout.rows_per_codebook  # the state as the digits of a number, oldest first
        state = sum(int(code[m, k]) << (layout.bits * (n - m)) for m in range(first, n + 1)) % (1 << layout.state_bits)
        level = np.float32(book[n // layout.rows_per_codebook, state])
        assert weights[n, k] == level * np.float32(scale[n // layout.rows_per_scale, 0])
    wide, parts = layout.as_codebook(codes, book, scale)
    np.testing.assert_array_equal(wide.dequantized(*parts), weights)


@settings(max_examples=30)
@given(LAYOUTS, st.integers(0, 2**31))
@example(TrellisLayout(3, 1100, 7, 8, 4), 0)  # more than one block of codes, a codebook of fewer rows than the others
@example(TrellisLayout(1, 5, 20, 8, 20), 1)  # a window of eight rows
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
        ({"bits": 5}, "bits must be 1 to 4"),
        ({"state_bits": 3}, "state_bits must be 4 to 24"),
        ({"state_bits": 13}, "state_bits must be 1 to 12"),
        ({"bits": 1, "state_bits": 9}, "state_bits must be 2 to 8"),
        ({"N": 2**31}, "N must be 1 to"),
        ({"state_bits": 12, "rows_per_codebook": 1, "N": 2**20}, "too many entries"),
    ],
)
def test_impossible_layouts_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TrellisLayout(3, 64, 8, 8, 8), **change)


def test_arrays_are_checked():
    layout = TrellisLayout(3, 64, 8, 6, 8)
    codes, book, scale = random_parts(layout, 0)
    for parts, message in (
        ((codes[:, :1], book, scale), "codes is uint8"),
        ((codes, book[..., :1], scale), "codebook is int8"),
        ((codes, book, scale[:1]), "scale is"),
        ((codes, np.full_like(book, -128), scale), "below -127"),
    ):
        with pytest.raises(ValueError, match=message):
            layout.check(*parts)
