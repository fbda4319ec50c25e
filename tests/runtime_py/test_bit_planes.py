"""BitPlaneMatMul in a graph of one's own: the interpreter's numbers are the reference's, a wrong one is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.artefacts.graph import Graph, Node, ValueInfo
from export.contract.errors import InputError
from export.contract.formats.base import DOMAIN
from export.contract.operators.bit_planes import BIT_PLANE_MATMUL, BitPlaneLayout, bit_plane_matmul, planes_of
from hw_model.estimate import open_target, price
from hw_model.graph_work.workload import Phase, operations
from runtime_py.reference.bit_planes import by_bit_planes

PREFILL = Phase.of("prefill", 3)


def problem(p: int, q: int, columns: int, rows: int, bipolar: bool, seed: int):
    rng = np.random.default_rng(seed)
    layout = BitPlaneLayout(columns, rows, p, q, int(bipolar))
    x = (rng.standard_normal((1, 3, columns)) + rng.standard_normal()).astype(np.float32)
    arrays = (
        planes_of(rng.integers(0, 1 << p, (rows, columns)), p), rng.integers(0, 1 << p, rows).astype(np.float32),
        rng.uniform(0.1, 1, rows).astype(np.float32),
    )  # fmt: skip
    node = Node(BIT_PLANE_MATMUL, DOMAIN, "/product", ("x", "planes", "zero", "scale"), ("y",), layout.attributes())
    return node, layout, x, arrays


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 8), st.integers(1, 8), st.integers(1, 70), st.integers(1, 5), st.booleans(), st.integers(0, 2**31)
)
def test_the_interpreters_product(p, q, columns, rows, bipolar, seed):
    node, layout, x, arrays = problem(p, q, columns, rows, bipolar, seed)
    np.testing.assert_array_equal(by_bit_planes(node, x, *arrays), bit_plane_matmul(x, layout, *arrays))


def test_it_runs_in_a_graph_and_wrong_arrays_are_refused():
    from runtime_py.reference.interpreter import Interpreter

    node, layout, x, arrays = problem(2, 4, 20, 3, False, 0)
    found = Interpreter(graph(node, x, arrays)).run({"x": x}, None)["y"]
    np.testing.assert_array_equal(found, bit_plane_matmul(x, layout, *arrays))
    for wrong in ((arrays[0][:1], *arrays[1:]), (arrays[0], arrays[1] + np.float32(0.5), arrays[2])):
        with pytest.raises(InputError, match="BitPlaneMatMul does not fit"):
            Interpreter(graph(node, x, wrong)).run({"x": x}, None)


def test_its_cost_follows_p_and_q():
    target, joules = open_target("bitplane"), {}
    for p, q in ((2, 2), (2, 8), (4, 8)):
        node, _, x, arrays = problem(p, q, 64, 32, False, 0)
        work = operations(graph(node, x, arrays), PREFILL)
        report = price(work, PREFILL, target, ranged=False)
        joules[p, q] = next(part.energy_j for part in report.components if part.name == "MAC array")
        assert joules[p, q] == pytest.approx(p * q * 3 * 64 * 32 * target["mac_energy"])


def graph(node: Node, x: np.ndarray, arrays: tuple[np.ndarray, ...]) -> Graph:
    weights = dict(zip(node.inputs[1:], arrays))
    infos = {name: ValueInfo(name, array.dtype, array.shape) for name, array in {"x": x, **weights}.items()}
    infos["y"] = ValueInfo("y", np.dtype(np.float32), (*x.shape[:-1], len(arrays[2])))
    return Graph(
        folder=None, nodes=(node,), weights=weights, inputs=(infos["x"],), outputs=(infos["y"],), values=infos,
        metadata={}, opset=23, files={},
    )  # fmt: skip
