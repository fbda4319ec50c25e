"""A model with one channel a hundred times as large as the others: exported, run and priced with its column apart."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from export.artefacts.reader import read_graph
from export.contract.sparse import SPARSE_MATMUL
from tests.conftest import _checkpoint, _package
from toolchain.calibrate.text import load_tokenizer
from toolchain.evaluate.perplexity import evaluate, open_scorer, windows_of

LAYER, CHANNEL, FACTOR = 1, 17, 100.0


@pytest.fixture(scope="module")
def source(demo_model, tmp_path_factory):
    """The bundled model with that channel: it computes what it did before."""
    folder = tmp_path_factory.mktemp("massive") / "model"
    shutil.copytree(demo_model, folder)
    path = next(folder.glob("*.safetensors"))
    tensors = load_file(path)
    up, down = (f"model.layers.{LAYER}.mlp.{name}.weight" for name in ("up_proj", "down_proj"))
    tensors[up][CHANNEL] *= tensors[up].dtype.type(FACTOR)
    tensors[down][:, CHANNEL] /= tensors[down].dtype.type(FACTOR)
    save_file(tensors, path, {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def folders(source, demo_text, tmp_path_factory):
    work, found = tmp_path_factory.mktemp("columns"), {}
    for apart in (True, False):
        options = {"bits": 3, "sequences": 8, "passes": 1, "format": "trellis", "spread": True, "columns_apart": apart}
        checkpoint = _checkpoint(source, str(demo_text), "0:0.5", work / f"q{apart}", **options)
        found[apart] = _package(checkpoint, work / f"model{apart}")
    return found


def test_only_that_layer_has_a_column_apart(folders):
    nodes = [node for node in read_graph(folders[True]).nodes if node.op_type == SPARSE_MATMUL]
    assert len(nodes) == 1 and f"layers.{LAYER}/mlp/down_proj" in nodes[0].name
    assert not any(node.op_type == SPARSE_MATMUL for node in read_graph(folders[False]).nodes)


def test_it_serves_the_source_better_at_the_same_budget(folders, source, demo_text):
    windows = windows_of(demo_text.read_text()[-40_000:], load_tokenizer(source), 128, 12, "text")
    reference = open_scorer(str(source))
    kl = {
        apart: evaluate(open_scorer(str(folder)), windows, reference, quiet=True).kl
        for apart, folder in folders.items()
    }
    assert kl[True] < kl[False]
    for folder in folders.values():
        assert json.loads((folder / "athena.json").read_text())["totals"]["effective_bits"] <= 3.1


def test_engine_and_interpreter_agree(folders):
    exact = open_scorer(str(folders[True]), "float32")
    engine = open_scorer(str(folders[True]))
    ids = np.random.default_rng(0).integers(3, 500, 40)
    found, wanted = engine.logits(ids), exact.logits(ids)
    assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()  # int8 activations
