"""Models of vector and trellis codes: alike in every runtime, lowered exactly, costed by what is stored."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from export.artefacts.reader import read_graph
from export.contract.errors import InputError
from export.contract.formats import PRODUCTS
from export.contract.formats.base import DOMAIN
from export.contract.formats.codebook import CODEBOOK_MATMUL
from hw_model.graph_work.workload import Phase, operations
from runtime_py.engine.engine import Engine
from runtime_py.load import open_model
from runtime_py.reference.session import Session
from tests.conftest import _checkpoint, _package
from tests.export.native.test_native import session
from tests.runtime_py.reference.test_session import OnnxRuntime
from toolchain.cli import app

# Pairs of weights by 4-bit codes, a sum of two vectors of eight, levels picked by 4 to 6 bits.
CHOICES = {
    "vector": {"format": "vectors", "dimension": 2},
    "aqlm": {"method": "aqlm", "passes": 1},
    "trellis": {"format": "trellis"},
}


@pytest.fixture(scope="module", params=list(CHOICES))
def folder(request, demo_model, demo_text, tmp_path_factory):
    """The bundled model at 2 bits."""
    work = tmp_path_factory.mktemp(request.param)
    settings_ = {"bits": 2, "sequences": 16, **CHOICES[request.param]}
    return _package(_checkpoint(demo_model, str(demo_text), "0:0.5", work / "q", **settings_), work / "model")


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


@pytest.mark.parametrize("target", ["onnxruntime", "native"])
def test_lowered_to_eight_bits_exactly(folder, target, tmp_path, native_library):
    done = CliRunner().invoke(app, ["lower", str(folder), "--target", target, "-o", str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["expanded"] == 28
    ids, ones, places = np.arange(3, 43)[None], np.ones((1, 40), np.int64), np.arange(40)[None]
    stock, path = OnnxRuntime(folder), str(tmp_path / "out" / "model.onnx")
    expected = stock.run(ids, ones, places, stock.empty())[0]
    stock.session = session(path, native_library if target == "native" else None, "float32")
    found = stock.run(ids, ones, places, stock.empty())[0]
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert error <= 2e-5 if target == "native" else error < 0.2  # MatMulNBits quantizes activations to int8


def test_cost_counts_the_stored_bits(folder):
    graph = read_graph(folder)
    work = [o for o in operations(graph, Phase.of("decode", 64)) if o.kind == "linear" and "head" not in o.name]
    kinds = {n.op_type for n in graph.nodes if n.domain == DOMAIN} - {"CodebookGather", "CodebookMatMul"}
    assert len(kinds) == 1 and kinds < PRODUCTS - {CODEBOOK_MATMUL}
    for operation in work:
        node = next(n for n in graph.nodes if n.name == operation.name)
        layout = node.matrix_layout()
        stored = graph.weights[node.inputs[1]].nbytes + graph.weights[node.inputs[2]].nbytes
        assert operation.weight_bits >= 8 * stored / (layout.N * layout.K)
        assert operation.macs == layout.N * layout.K


def test_a_hostile_file_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "bad")
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    node = next(n for n in model.graph.node if n.op_type in PRODUCTS)
    changes = {"K": 80, "dimension": 7, "bits": 0, "rows_per_codebook": 3, "state_bits": 3}
    for name in changes.keys() & {a.name for a in node.attribute}:
        changed = onnx.ModelProto()
        changed.CopyFrom(model)
        target = next(n for n in changed.graph.node if n.name == node.name)
        next(a for a in target.attribute if a.name == name).i = changes[name]
        (tmp_path / "bad" / "model.onnx").write_bytes(changed.SerializeToString())
        with pytest.raises(InputError, match=node.name):
            open_model(tmp_path / "bad")
