"""Whole models of trellis codes: read as they are stored, they compute the bits that their 8-bit expansion computes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from export.artefacts.reader import read_graph
from runtime_py.engine.engine import Engine
from runtime_py.engine.records import stored_matrix
from runtime_py.load import open_model
from runtime_py.machine.isa import available
from runtime_py.reference.expansion import expand_products
from tests.conftest import _checkpoint, _package


@pytest.fixture(scope="module")
def folder(demo_model, demo_text, tmp_path_factory):
    work = tmp_path_factory.mktemp("paths")
    options = {"bits": 3, "sequences": 8, "passes": 0, "format": "trellis", "state_bits": 8, "levels": "sums"}
    return _package(_checkpoint(demo_model, str(demo_text), "0:0.5", work / "q", **options), work / "model")


def logits(engine, ids):
    state = engine.new_state()
    parts = [engine.forward(state, ids[:37]), *(engine.forward(state, ids[i : i + 1]) for i in range(37, 45))]
    return np.concatenate(parts)


# Compiling a whole engine takes long; the kernels of every instruction set are tested in test_products.py.
BEST, *OTHERS = available()


@pytest.mark.parametrize("isa", [BEST, *(pytest.param(isa, marks=pytest.mark.long) for isa in OTHERS)])
@pytest.mark.parametrize("wide", [True, False], ids=["levels", "halves"])
def test_stored_codes_give_the_same_bits(folder, isa, wide, monkeypatch):
    monkeypatch.setenv("ATHENA_ISA", isa)
    ids = np.random.default_rng(0).integers(3, 500, 45)
    expanded = Engine(expand_products(read_graph(folder)), threads=3)
    monkeypatch.setattr(stored_matrix, "_WIDE", (isa,) if wide else ())
    direct, why = open_model(folder, threads=3)
    assert isinstance(direct, Engine), why
    np.testing.assert_array_equal(logits(direct, ids), logits(expanded, ids))
    assert direct.bytes_per_token < 0.7 * expanded.bytes_per_token  # the 8-bit head counts in both


@pytest.mark.parametrize("isa", ["avx512vbmi", "avx2", "neon"])
def test_any_levels_are_taken_where_256_are_looked_up_and_sums_everywhere(folder, isa, monkeypatch):
    monkeypatch.setattr(stored_matrix, "pick", lambda: isa)
    graph = read_graph(folder)
    node = next(n for n in graph.nodes if n.op_type == "TrellisCodebookMatMul")
    assert stored_matrix.runs_directly(node, graph)
    book = graph.weights[node.inputs[2]].copy()
    book[0, 7] += 1
    other = replace(graph, weights={**graph.weights, node.inputs[2]: book})
    assert stored_matrix.runs_directly(node, other) == (isa == "avx512vbmi")
    layout = replace(node.matrix_layout(), state_bits=7)
    assert not stored_matrix.takes(layout, book)
    computed = {name: array for name, array in graph.weights.items() if name != node.inputs[2]}
    assert not stored_matrix.runs_directly(node, replace(graph, weights=computed))


def test_names_of_a_file_are_not_taken_for_what_is_made(folder):
    graph = read_graph(folder)
    own = np.arange(3, dtype=np.float32)
    changed = expand_products(replace(graph, weights={**graph.weights, "#0.expanded.codes": own}))
    first = next(i for i, node in enumerate(graph.nodes) if node.op_type == "TrellisCodebookMatMul")
    assert changed.nodes[first].inputs[1] == "#0.expanded.codes#"
    assert changed.weights["#0.expanded.codes"] is own
    plain = expand_products(graph)
    np.testing.assert_array_equal(
        changed.weights["#0.expanded.codes#"], plain.weights[plain.nodes[first].inputs[1]]
    )  # fmt: skip
