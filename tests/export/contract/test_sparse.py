"""Sparse weights: operator, function body, storage, and whole models with outliers in every runtime."""

from __future__ import annotations

import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from export.artefacts.reader import read_graph
from export.contract.errors import InputError
from export.contract.formats.base import DOMAIN, IR_VERSION, OPSET
from export.contract.sparse import SPARSE_MATMUL, SparseLayout, sparse_parts
from export.graph.bodies.sparse import sparse_function
from hw_model.graph_work.workload import Phase, operations
from runtime_py.engine.engine import Engine
from runtime_py.load import open_model
from runtime_py.reference.kernels import sparse_matmul
from runtime_py.reference.session import Session
from tests.conftest import _checkpoint, _package
from tests.runtime_py.reference.test_session import OnnxRuntime


def random_sparse(rows, columns, count, seed):
    rng = np.random.default_rng(seed)
    places = np.sort(rng.permutation(rows * columns)[:count])
    values = rng.standard_normal(places.size)
    dense = np.zeros(rows * columns, np.float32)
    dense[places] = values.astype(np.float16)
    return dense.reshape(rows, columns), sparse_parts(places, values, np.float16)


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(1, 300), st.integers(0, 50), st.integers(0, 1000))
@example(300, 1000, 2, 0)  # a gap longer than 65,535
@example(1, 300_000, 1, 3)
def test_parts_are_the_matrix_and_every_product_agrees(rows, columns, count, seed):
    dense, parts = random_sparse(rows, columns, count, seed)
    layout = SparseLayout(columns, rows)
    np.testing.assert_array_equal(layout.dense(*parts), dense)
    x = np.random.default_rng(seed).standard_normal((2, 3, columns)).astype(np.float32)
    expected, bound = x @ dense.T, np.abs(x) @ np.abs(dense).T
    assert np.all(np.abs(sparse_matmul(layout, x, *parts) - expected) <= 2e-6 * bound + 1e-30)
    node = helper.make_node(SPARSE_MATMUL, ["x", "gaps", "values"], ["y"], domain=DOMAIN, **layout.attributes())
    graph = helper.make_graph(
        [node], "one", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, columns])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3, rows])],
        [onnx.numpy_helper.from_array(a, n) for a, n in zip(parts, ("gaps", "values"))],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, functions=[sparse_function()], opset_imports=opsets, ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    found = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
    assert np.all(np.abs(found - expected) <= 2e-6 * bound + 1e-30)  # float32 sums in another order
    if rows * columns < 4000:
        assert np.all(np.abs(ReferenceEvaluator(model).run(None, {"x": x})[0] - expected) <= 2e-6 * bound + 1e-30)


@pytest.mark.parametrize(
    "gaps, values, message",
    [
        ([3, 0], [1, 1], "repeat a place"),
        ([3, 61], [1, 1], "out of the matrix"),
        ([1, 2], [1], "values is"),
        ([1], [np.inf], "not finite"),
    ],
)
def test_hostile_parts_are_refused(gaps, values, message):
    with pytest.raises(ValueError, match=message):
        SparseLayout(8, 8).places(np.array(gaps, np.uint16), np.array(values, np.float16))


@pytest.fixture(scope="module", params=[{}, {"format": "trellis"}, {"method": "squeezellm", "outliers_by": "gradient"}])
def folder(request, demo_model, demo_text, tmp_path_factory):
    """The bundled model at 3 bits with 1 % of the weights apart."""
    work = tmp_path_factory.mktemp("sparse")
    chosen = {"bits": 3, "sequences": 16, "passes": 1, "outliers": 0.01, **request.param}
    return _package(_checkpoint(demo_model, str(demo_text), "0:0.5", work / "q", **chosen), work / "model")


def test_whole_models_run_everywhere_alike(folder):
    ids = np.random.default_rng(0).integers(3, 500, 40)
    stock, ours = OnnxRuntime(folder), Session(folder)
    ones, places = np.ones((1, 40), np.int64), np.arange(40)[None]
    expected = stock.run(ids[None], ones, places, stock.empty())[0][0]
    found = ours.forward(ours.new_state(), ids)
    assert np.abs(found - expected).max() <= 2e-5 * np.abs(expected).max()  # float32 sums in another order
    engine, why = open_model(folder)
    assert isinstance(engine, Engine), why
    logits = engine.forward(engine.new_state(), ids)
    assert np.sqrt(np.mean((logits - expected) ** 2)) < 0.05 * expected.std()  # int8 activations
    state = engine.new_state()  # one token at a time, the other kernels
    steps = np.concatenate([engine.forward(state, ids[i : i + 1]) for i in range(8)])
    assert np.sqrt(np.mean((steps - expected[:8]) ** 2)) < 0.05 * expected[:8].std()


def test_cost_and_bits_count_them(folder):
    graph = read_graph(folder)
    sparse = [o for o in operations(graph, Phase.of("decode", 64)) if o.kind == "sparse"]
    stored = sum(array.nbytes for name, array in graph.weights.items() if "outlier" in name)
    assert len(sparse) == 28 and sum(o.weight_bytes for o in sparse) == stored
    weights = 4 * (2 * 192 * 192 + 2 * 64 * 192 + 3 * 192 * 512)
    assert 8 * stored / weights == pytest.approx(0.32, abs=0.01)
    assert sum(o.vector_ops for o in sparse) == 2 * stored // 4


def test_a_hostile_file_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "bad")
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    node = next(n for n in model.graph.node if n.op_type == SPARSE_MATMUL)
    for name, value in (("K", 0), ("N", 1)):
        changed = onnx.ModelProto()
        changed.CopyFrom(model)
        target = next(n for n in changed.graph.node if n.name == node.name)
        next(a for a in target.attribute if a.name == name).i = value
        (tmp_path / "bad" / "model.onnx").write_bytes(changed.SerializeToString())
        with pytest.raises(InputError, match=node.name):
            open_model(tmp_path / "bad")
