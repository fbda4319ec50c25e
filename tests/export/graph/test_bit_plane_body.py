"""BitPlaneMatMul's function body in stock onnxruntime, bit for bit against the numpy reference."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from hypothesis import given, settings
from hypothesis import strategies as st

from export.contract.formats.base import DOMAIN, DOMAIN_VERSION, IR_VERSION, OPSET
from export.contract.operators.bit_planes import BIT_PLANE_MATMUL, BitPlaneLayout, bit_plane_matmul, planes_of
from export.graph.bodies.bit_planes import bit_plane_function


def run(layout: BitPlaneLayout, inputs: list[np.ndarray]) -> np.ndarray:
    names, types = ["X", "planes", "zero", "scale"], [1, 2, 1, 1]
    node = onnx.helper.make_node(BIT_PLANE_MATMUL, names, ["Y"], domain=DOMAIN, **layout.attributes())
    graph = onnx.helper.make_graph(
        [node], "one",
        [onnx.helper.make_tensor_value_info(n, t, [None] * a.ndim) for n, t, a in zip(names, types, inputs)],
        [onnx.helper.make_tensor_value_info("Y", 1, None)],
    )  # fmt: skip
    opsets = [onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid(DOMAIN, DOMAIN_VERSION)]
    model = onnx.helper.make_model(graph, functions=[bit_plane_function()], opset_imports=opsets, ir_version=IR_VERSION)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip(names, inputs)))[0]


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 8), st.integers(1, 8), st.integers(1, 70), st.integers(1, 5), st.booleans(), st.integers(0, 2**31)
)
def test_body(p, q, columns, rows, bipolar, seed):
    rng = np.random.default_rng(seed)
    layout = BitPlaneLayout(columns, rows, p, q, int(bipolar))
    x = (rng.standard_normal((1, 3, columns)) + rng.standard_normal()).astype(np.float32)
    x[0, 1] = 0
    planes = planes_of(rng.integers(0, 1 << p, (rows, columns)), p)
    zero = rng.integers(0, 1 << p, rows).astype(np.float32)
    scale = rng.uniform(0.01, 1, rows).astype(np.float32)
    found = run(layout, [x, planes, zero, scale])
    np.testing.assert_array_equal(found, bit_plane_matmul(x, layout, planes, zero, scale))
