"""The engine's short convolutions: the kernel against numpy, models against the interpreter, what is not planned."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.artefacts.graph import Graph
from export.artefacts.reader import read_graph
from export.contract.errors import NotFiniteError
from runtime_py.engine.engine import Engine
from runtime_py.engine.kernels.recurrent.convolution import convolve, keep_products
from runtime_py.engine.records.errors import Unplannable
from runtime_py.engine.records.stored_matrix import runs_directly
from runtime_py.engine.walk import plan_decoder
from runtime_py.load import open_model
from runtime_py.reference.expansion import expand_products
from runtime_py.reference.session import Session
from tests.conftest import _checkpoint, _package
from tests.export.graph.families import random_text, tiny_model
from tests.runtime_py.tiny import filled, write_tiny

OPTIONS = {
    "lfm2": {"bits": 4},
    "lfm2 wide": {"bits": 3, "format": "trellis"},
}
IDS = np.random.default_rng(1).integers(0, 96, 40)


@pytest.fixture(scope="module", params=OPTIONS)
def folder(request, tmp_path_factory):
    work = tmp_path_factory.mktemp("convolution")
    tiny_model(request.param, work / "source")
    text = random_text(work / "text.txt")
    chosen = {"sequences": 2, "sequence_length": 32, "passes": 1, **OPTIONS[request.param]}
    return _package(_checkpoint(work / "source", str(text), None, work / "q", **chosen), work / "model")


@settings(max_examples=100)
@given(st.integers(1, 50), st.integers(1, 6), st.integers(1, 9), st.booleans(), st.integers(0, 2**31))
def test_outputs_and_states_are_those_of_a_loop(columns, width, tokens, biased, seed):
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((tokens, 3 * columns)).astype(np.float32)  # inner, outer, values, as in the graph
    past, kernel = (rng.standard_normal((width, columns)).astype(np.float32) for _ in range(2))
    bias = rng.standard_normal(columns).astype(np.float32)
    out, present = np.full((tokens + 1, columns), 7, np.float32), np.full((width + 1, columns), 7, np.float32)
    inner, outer, values = (mixed.ctypes.data + 4 * columns * part for part in range(3))
    for token in range(tokens):
        to = out.ctypes.data + 4 * columns * token
        convolve(
            inner, values, outer, 3 * columns, past.ctypes.data, columns, width, kernel.ctypes.data,
            bias.ctypes.data if biased else 0, token, 0, columns, to,
        )  # fmt: skip
    keep_products(inner, values, 3 * columns, past.ctypes.data, columns, width, tokens, 0, columns, present.ctypes.data)
    seen = np.concatenate([past, mixed[:, :columns] * mixed[:, 2 * columns :]])
    sums = np.stack([(seen[t + 1 : t + 1 + width] * kernel).sum(axis=0) for t in range(tokens)])
    expected = mixed[:, columns : 2 * columns] * (sums + bias if biased else sums)
    np.testing.assert_allclose(out[:tokens], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(present[:width], seen[-width:])
    assert (out[tokens] == 7).all() and (present[width] == 7).all()


@pytest.mark.parametrize("isa", ["", "avx2", "portable"])
def test_the_engine_computes_what_the_interpreter_does(folder, isa, monkeypatch):
    if isa:
        monkeypatch.setenv("ATHENA_ISA", isa)
    engine, why = open_model(folder)
    assert why == ""
    session = Session(folder)
    expected = session.forward(session.new_state(), IDS)
    state = engine.new_state()
    pieces = ((0, 17), (17, 18), (18, 19), (19, 40))
    found = np.concatenate([engine.forward(state, IDS[a:b]) for a, b in pieces])
    assert np.sqrt(np.mean((found - expected) ** 2)) < 0.05 * np.sqrt(np.mean(expected**2))


def test_a_call_that_ends_badly_leaves_the_state_as_it_was(tmp_path):
    """One token, one chunk and several chunks: the calls after it give what they give without it."""
    lfm2 = {"model_type": "lfm2", "layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}
    folder = write_tiny(tmp_path / "model", {}, **lfm2)
    engine, why = open_model(folder)
    assert why == "" and isinstance(engine, Engine)
    state, expected = engine.new_state(), engine.new_state()
    engine.forward(state, IDS[:7])
    engine.forward(expected, IDS[:7])
    for count in (1, 5, 300):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(NotFiniteError):
            patch.setattr("runtime_py.engine.engine.checked_logits", _refused)
            engine.forward(state, np.resize(IDS, count))
        assert state.length == 7
    np.testing.assert_array_equal(engine.forward(state, IDS[7:20]), engine.forward(expected, IDS[7:20]))


def _refused(logits):
    raise NotFiniteError("no numbers")


def _changed(graph: Graph, op_type: str, **fields) -> Graph:
    """The graph with the first node of a kind changed."""
    place = next(i for i, node in enumerate(graph.nodes) if node.op_type == op_type)
    nodes = list(graph.nodes)
    nodes[place] = replace(nodes[place], **fields)
    return replace(graph, nodes=tuple(nodes))


def test_what_is_no_short_convolution_is_not_planned(folder):
    graph = expand_products(read_graph(folder), keep=runs_directly)
    plan_decoder(graph, 256)
    state = next(info.name for info in graph.inputs if info.name.startswith("past_conv."))
    kept = next(node for node in graph.nodes if node.op_type == "Slice" and node.outputs[0].startswith("present_conv"))
    weights = dict(graph.weights)
    weights[kept.inputs[1]] = weights[kept.inputs[1]] + 1
    conv = next(node for node in graph.nodes if node.op_type == "Conv")
    spoiled = [
        replace(graph, weights=weights),  # a state that is not the last columns
        _changed(graph, "Conv", attributes={**conv.attributes, "pads": [1, 1]}),
        _changed(graph, "Conv", attributes={**conv.attributes, "group": 1}),
        _changed(graph, "Transpose", attributes={"perm": [0, 1, 2]}) if _first_transposes(graph) else None,
        replace(graph, nodes=tuple(node for node in graph.nodes if node is not kept)),
        replace(graph, nodes=(*graph.nodes, replace(kept, name="again", inputs=(state, *kept.inputs[1:])))),
    ]
    for wrong in filter(None, spoiled):
        with pytest.raises(Unplannable):
            plan_decoder(wrong, 256)


def _first_transposes(graph: Graph) -> bool:
    """Whether the first transposition is that of a convolution's input, and not of a matrix."""
    return list(next(node for node in graph.nodes if node.op_type == "Transpose").attributes["perm"]) == [0, 2, 1]


def test_a_convolution_of_zeros_says_what_the_rest_says(tmp_path):
    """Its weights are read: with zeros for them the tokens before have no part in the logits."""
    lfm2 = {"model_type": "lfm2", "layer_types": ["conv", "conv"], "block_auto_adjust_ff_dim": False}
    for number, (edits, alike) in enumerate((({"conv.conv.weight": filled(0.0)}, True), ({}, False))):
        engine, why = open_model(write_tiny(tmp_path / str(number), edits, **lfm2))
        assert why == ""
        first, second = (engine.forward(engine.new_state(), [before, 7, 9])[-1] for before in (3, 5))
        assert np.array_equal(first, second) == alike
