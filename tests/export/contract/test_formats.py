"""Every weight format of the registry: parts, rows, the form as a codebook, random parts, bad attributes.

A format gets these tests by its entry in the registry; SHAPES has to have attributes for it.
"""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from export.contract.formats import FORMATS, LOOKUPS, PRODUCTS, layout_of, operator_layout
from export.contract.formats.base import DOMAIN, DOMAIN_VERSION, FLOATS, IR_VERSION, OPSET, Layout, field_names
from export.contract.formats.groups import MINIMA
from export.contract.formats.mxfp4 import Mxfp4Layout
from export.contract.packing import pack

SHAPES = {
    "codebook": [
        {"group_size": 0},
        {"group_size": 7, "rows_per_codebook": 3},
        {"rows_per_codebook": 2, "rows_per_scale": 2},
    ],
    "trellis": [
        {"state_bits": 8, "rows_per_codebook": 4},
        {"state_bits": 7, "rows_per_codebook": 64, "rows_per_scale": 3},
    ],
    "vectors": [{"dimension": 2}, {"dimension": 3, "books": 2, "rows_per_codebook": 5}],
    "razored": [{"group_size": 4}, {"group_size": 16, "rotation": 1}],
    "mxfp4": [{}],
    "groups": [{"group_size": 32, "offsets": 0}, {"group_size": 7, "offsets": 1}, {"group_size": 64, "offsets": 2}],
    "nested": [{"lowest": 1, "rows_per_codebook": 3}, {"lowest": 1, "rows_per_scale": 2, "rows_per_codebook": 64}],
    "sparse_codes": [
        {"kept": 2, "run": 4, "rows_per_codebook": 3},
        {"kept": 1, "run": 3, "rows_per_scale": 2, "rows_per_codebook": 64},
        {"kept": 150, "run": 300},
    ],
}
BITS = {"mxfp4": (4, 4), "trellis": (2, 4), "razored": (2, 8), "nested": (2, 6)}
CASES = [(scheme, extra) for scheme, choices in SHAPES.items() for extra in choices]


def made(scheme: str, extra: dict, bits: int, rows: int, columns: int) -> Layout:
    low, high = BITS.get(scheme, (1, 6))
    fields = field_names(FORMATS[scheme])
    defaults = {"group_size": 0, "rows_per_codebook": 1, "rows_per_scale": 1, "books": 1, "rotation": 1}
    wanted = {"bits": min(max(bits, low), high), "K": columns, "N": rows, **defaults, **extra}
    return layout_of(scheme, {name: wanted[name] for name in fields})


def test_every_format_is_tested():
    assert SHAPES.keys() == FORMATS.keys()
    assert all(scheme == kind.SCHEME for scheme, kind in FORMATS.items())


@pytest.mark.parametrize("scheme, extra", CASES)
@settings(max_examples=25, deadline=None)
@given(bits=st.integers(1, 8), rows=st.integers(1, 20), columns=st.integers(1, 330), seed=st.integers(0, 9))
def test_the_form_as_a_codebook_is_the_same_matrix(scheme, extra, bits, rows, columns, seed):
    layout = made(scheme, extra, bits, rows, columns)
    rng = np.random.default_rng(seed)
    arrays = [layout.random(part, rng, 0.02) for part in layout.parts()]
    weights = layout.dequantized(*arrays)
    assert weights.shape == (rows, columns) and weights.dtype == np.float32 and np.isfinite(weights).all()
    if extra.get("offsets") == MINIMA:
        with pytest.raises(ValueError, match="minima are no levels"):
            layout.as_codebook(*arrays)
    else:
        codebook, parts = layout.as_codebook(*arrays)
        np.testing.assert_array_equal(codebook.dequantized(*parts), weights)
    chosen = rng.integers(0, rows, 5)
    np.testing.assert_array_equal(layout.rows(chosen, *arrays), weights[chosen])


@pytest.mark.parametrize("scheme, extra", CASES)
def test_random_weights_have_about_the_deviation(scheme, extra):
    layout = made(scheme, extra, 4, 256, 320)
    rng = np.random.default_rng(0)
    weights = layout.dequantized(*(layout.random(part, rng, 0.02) for part in layout.parts()))
    assert 0.008 < weights.std() < 0.05


@pytest.mark.parametrize("scheme, extra", CASES)
def test_wrong_parts_and_attributes_are_refused(scheme, extra):
    layout = made(scheme, extra, 4, 12, 64)
    rng = np.random.default_rng(0)
    arrays = {part: layout.random(part, rng, 0.02) for part in layout.parts()}
    layout.check(*arrays.values())
    for name, array in arrays.items():
        for wrong in (array[:-1], array[..., :-1], array.astype(np.int64), array[None]):
            with pytest.raises(ValueError, match=name):
                layout.check(*{**arrays, name: wrong}.values())
    attributes = layout.attributes()
    for name in attributes:
        for value in (-1, 2**31, 1.5, "4", True, None):
            with pytest.raises((TypeError, ValueError)):
                layout_of(scheme, {**attributes, name: value})
    with pytest.raises(KeyError):
        layout_of(scheme, {name: attributes[name] for name in list(attributes)[1:]})


def in_onnxruntime(layout: Layout, arrays: list[np.ndarray]) -> np.ndarray:
    """W float32 [N, K], by the function body: the identity times W^T, sums of one number and zeros."""
    names = list(layout.parts())
    node = helper.make_node(layout.OPERATOR, ["X", *names], ["Y"], domain=DOMAIN, **layout.attributes())
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [layout.K, layout.K])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [layout.K, layout.N])],
        [numpy_helper.from_array(array, name) for name, array in zip(names, arrays)],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)]
    model = helper.make_model(graph, functions=layout.function_bodies(), opset_imports=opsets, ir_version=IR_VERSION)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"X": np.eye(layout.K, dtype=np.float32)})[0].T


@pytest.mark.parametrize("scheme, extra", [case for case in CASES if FORMATS[case[0]].OPERATOR])
@pytest.mark.parametrize("bits, rows, columns", [(4, 3, 33), (3, 20, 300), (2, 1, 1), (4, 7, 256)])
def test_the_function_body_is_the_same_matrix(scheme, extra, bits, rows, columns):
    layout = made(scheme, extra, bits, rows, columns)
    rng = np.random.default_rng(rows)
    arrays = [layout.random(part, rng, 0.02) for part in layout.parts()]
    np.testing.assert_array_equal(in_onnxruntime(layout, arrays), layout.dequantized(*arrays))


def test_names_of_parts_are_those_of_layouts():
    for scheme, extra in CASES:
        assert tuple(made(scheme, extra, 4, 8, 64).parts()) == FORMATS[scheme].PARTS


def test_mxfp4_is_what_the_specification_says():
    """Open Compute Project, Microscaling Formats v1.0, tables of E2M1 and E8M0; scales at both ends of float32."""
    layout = Mxfp4Layout(4, 32, 3)
    codes = pack(np.tile(np.arange(16, dtype=np.uint8), (3, 2)), 4)
    scale = np.array([[127], [0], [252]], np.uint8)
    values = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
    expected = (np.tile(values, (3, 2)) * 2.0 ** (scale.astype(np.float64) - 127)).astype(np.float32)
    np.testing.assert_array_equal(layout.dequantized(codes, scale), expected)
    np.testing.assert_array_equal(in_onnxruntime(layout, [codes, scale]), expected)
    for refused in (253, 255):
        with pytest.raises(ValueError, match="scale holds an exponent above 252"):
            layout.check(codes, np.full((3, 1), refused, np.uint8))


def test_operators_lead_to_their_formats():
    for name in PRODUCTS | LOOKUPS:
        kind = next(k for k in FORMATS.values() if name in (k.OPERATOR, k.LOOKUP))
        layout = made(kind.SCHEME, SHAPES[kind.SCHEME][0], 4, 8, 64)
        assert operator_layout(name, {**layout.attributes(), "unknown": 1}) == layout


@pytest.mark.parametrize("scheme, extra", CASES)
def test_stored_bytes_are_those_of_the_parts(scheme, extra):
    layout = made(scheme, extra, 4, 12, 64)
    rng = np.random.default_rng(0)
    arrays = [layout.random(part, rng, 0.02) for part in layout.parts()]
    halved = [a if part.dtypes != FLOATS else a.astype(np.float16) for a, part in zip(arrays, layout.parts().values())]
    assert layout.stored_bytes() == sum(array.nbytes for array in halved)
