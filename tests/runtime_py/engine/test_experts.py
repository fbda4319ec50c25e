"""The engine's steps for experts: picks and sums against numpy, products against the interpreter, what it refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.artefacts.reader import read_graph
from runtime_py.engine.kernels.experts import combine_row, route, route_by_sigmoid
from runtime_py.engine.records.stored_matrix import runs_directly
from runtime_py.engine.steps.experts import ExpertFloats, ExpertMatMul
from runtime_py.engine.walk import plan_decoder
from runtime_py.load import open_model
from runtime_py.reference.expansion import expand_products
from runtime_py.reference.operators import run_operator
from runtime_py.reference.session import Session
from runtime_py.system.paging import PAGE
from tests.conftest import _checkpoint, _package
from tests.export.graph.families import random_text, tiny_model

OPTIONS = {
    "olmoe": {"bits": 4},
    "qwen3_moe": {"bits": 3, "format": "trellis"},
    "mixtral": {"bits": 2, "format": "vectors", "dimension": 2},
    "qwen3_moe window": {"bits": 8},
    "qwen3_moe dense": {"bits": 3},
    "lfm2_moe": {"bits": 4},
    "lfm2_moe without bias": {"bits": 3},
    "gpt_oss": {"bits": 4},
    "gpt_oss mxfp4": {"bits": 4, "method": "rtn", "format": "mxfp4"},
    "gpt_oss clamped low rank": {"bits": 4, "rank": 2},
    "olmoe low rank": {"bits": 3, "rank": 3},
    "mixtral groups": {"bits": 4, "group_size": 16},
    "gpt_oss clamped": {"bits": 3},
}
IDS = np.random.default_rng(1).integers(0, 96, 23)


@pytest.fixture(scope="module", params=OPTIONS)
def folder(request, tmp_path_factory):
    work = tmp_path_factory.mktemp("experts")
    variant = request.param.removesuffix(" low rank").removesuffix(" groups").removesuffix(" mxfp4")
    tiny_model(variant, work / "source")
    text = random_text(work / "text.txt")
    chosen = {"sequences": 4, "sequence_length": 32, "passes": 1, **OPTIONS[request.param]}
    return _package(_checkpoint(work / "source", str(text), None, work / "q", **chosen), work / "model")


@settings(max_examples=200)
@given(st.integers(1, 70), st.integers(0, 2**31), st.booleans(), st.booleans(), st.data())
def test_picks_are_those_of_softmax_and_top_k(experts, seed, normalised, coarse, data):
    """Coarse scores have many ties: the lower number comes first."""
    count, rng = data.draw(st.integers(1, experts)), np.random.default_rng(seed)
    scores = (rng.integers(-3, 3, experts) if coarse else 4 * rng.standard_normal(experts)).astype(np.float32)
    weights, picked = np.full(count + 1, 7, np.float32), np.full(count + 1, 7, np.int64)
    places = weights.ctypes.data, picked.ctypes.data
    route(scores.ctypes.data, experts, count, int(normalised), np.float32(0), np.float32(1), *places)
    (shares,) = run_operator("Softmax", "", {"axis": -1}, [scores[None]])
    values, numbers = run_operator("TopK", "", {"axis": -1}, [shares, np.array([count])])
    values = values / values.sum() if normalised else values
    np.testing.assert_array_equal(scores[picked[:count]], np.sort(scores)[::-1][:count])
    np.testing.assert_allclose(weights[:count], values[0], rtol=1e-5)
    if coarse:
        np.testing.assert_array_equal(picked[:count], numbers[0])
    assert weights[count] == 7 and picked[count] == 7


@settings(max_examples=200)
@given(st.integers(1, 70), st.integers(0, 2**31), st.booleans(), st.booleans(), st.booleans(), st.data())
def test_picks_by_sigmoids_and_biases(experts, seed, normalised, biased, coarse, data):
    """Against the operators of the graph: the biases are not in the weights."""
    count, rng = data.draw(st.integers(1, experts)), np.random.default_rng(seed)
    scores = (rng.integers(-3, 3, experts) if coarse else 4 * rng.standard_normal(experts)).astype(np.float32)
    biases = rng.standard_normal(experts).astype(np.float32) if biased else np.zeros(experts, np.float32)
    weights, picked = np.full(count + 1, 7, np.float32), np.full(count + 1, 7, np.int64)
    floor, scale, scratch = np.float32(0.25), np.float32(1.75), np.zeros(2 * experts + 1, np.float32)
    route_by_sigmoid(
        scores.ctypes.data, biases.ctypes.data if biased else 0, experts, count, int(normalised), floor, scale,
        weights.ctypes.data, picked.ctypes.data, scratch.ctypes.data,
    )  # fmt: skip
    (shares,) = run_operator("Sigmoid", "", {}, [scores[None]])
    ranks = shares[0] + biases
    np.testing.assert_allclose(ranks[picked[:count]], np.sort(ranks)[::-1][:count], rtol=1e-5, atol=1e-6)
    assert len(set(picked[:count].tolist())) == count
    if coarse:
        np.testing.assert_array_equal(picked[:count], np.argsort(-ranks, kind="stable")[:count])
    (wanted,) = run_operator("GatherElements", "", {"axis": -1}, [shares, picked[None, :count]])
    wanted = scale * (wanted / (wanted.sum() + floor) if normalised else wanted)
    np.testing.assert_allclose(weights[:count], wanted[0], rtol=1e-5)
    assert weights[count] == 7 and picked[count] == 7 and scratch[2 * experts] == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("everywhere", [False, True])
def test_scores_that_are_no_numbers_pick_experts_all_the_same(value, everywhere):
    scores = np.full(9, value, np.float32) if everywhere else np.array([1, 2, value, 0, 5, 3, 1, 1, 4], np.float32)
    weights, picked = np.zeros(9, np.float32), np.full(9, -1, np.int64)
    numbers, places = (9, 9, 1, np.float32(0), np.float32(1)), (weights.ctypes.data, picked.ctypes.data)
    route(scores.ctypes.data, *numbers, *places)
    assert ((picked >= 0) & (picked < 9)).all()
    picked[:], scratch = -1, np.zeros(18, np.float32)
    route_by_sigmoid(scores.ctypes.data, scores.ctypes.data, *numbers, *places, scratch.ctypes.data)
    assert ((picked >= 0) & (picked < 9)).all()


@pytest.mark.parametrize("columns", [1, 16, 50])
def test_a_sum_by_weights(columns):
    rng = np.random.default_rng(columns)
    source, weights = rng.standard_normal((3, columns)).astype(np.float32), rng.random(3).astype(np.float32)
    out = np.full(columns + 1, 7, np.float32)
    combine_row(source.ctypes.data, weights.ctypes.data, 3, columns, out.ctypes.data)
    np.testing.assert_allclose(out[:columns], weights @ source, rtol=1e-5, atol=1e-6)
    assert out[columns] == 7


@pytest.mark.parametrize("isa", ["", "avx2", "portable"])
def test_the_engine_computes_what_the_interpreter_does(folder, isa, monkeypatch):
    if isa:
        monkeypatch.setenv("ATHENA_ISA", isa)
    engine, why = open_model(folder)
    assert why == ""
    session = Session(folder)
    expected = session.forward(session.new_state(), IDS)
    state = engine.new_state()
    found = np.concatenate([engine.forward(state, IDS[a:b]) for a, b in ((0, 17), (17, 18), (18, 23))])
    # int8 activations; where two experts are almost equal the other may be picked
    error = np.sqrt(np.mean((found - expected) ** 2, axis=1)) / np.sqrt(np.mean(expected**2))
    assert np.median(error) < 0.05


@pytest.mark.parametrize("isa", ["", "avx2", "portable"])
def test_a_token_has_the_same_logits_whatever_its_neighbours_are(folder, isa, monkeypatch):
    """Of a prompt in any pieces of several tokens; one alone is alike to rounding."""
    if isa:
        monkeypatch.setenv("ATHENA_ISA", isa)
    engine, _ = open_model(folder)
    ids = np.random.default_rng(4).integers(0, 96, 150)  # more picks of an expert than are gathered at once
    whole = engine.forward(engine.new_state(), ids)
    state = engine.new_state()
    pieces = [engine.forward(state, ids[a:b]) for a, b in ((0, 2), (2, 50), (50, 53), (53, 150))]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
    state = engine.new_state()
    one_by_one = np.concatenate([engine.forward(state, ids[i : i + 1]) for i in range(23)])
    error = np.sqrt(np.mean((whole[:23] - one_by_one) ** 2, axis=1)) / np.sqrt(np.mean(whole**2))
    assert np.median(error) < 1e-3
    last = engine.forward(engine.new_state(), ids, last_only=True)
    # the head's product of one token adds its float32 sums in another order
    np.testing.assert_allclose(last, whole[-1:], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_nothing(folder, threads):
    ids = np.random.default_rng(5).integers(0, 96, 70)
    found = [open_model(folder, threads=n)[0] for n in (2, threads)]
    first, second = (engine.forward(engine.new_state(), ids) for engine in found)
    np.testing.assert_array_equal(first, second)


def pages_of(folder, mapped, **more) -> set[int]:
    """What the steps of experts are told of pages."""
    graph = expand_products(replace(read_graph(folder, mapped=mapped), **more), keep=runs_directly)
    steps = [planned.step for planned in plan_decoder(graph, 16).steps]
    return {step.page for step in steps if isinstance(step, ExpertMatMul | ExpertFloats)}


def test_logits_are_the_same_where_memory_does_not_hold_the_experts(folder, monkeypatch):
    """Mapped and asked for expert by expert, prompts and single tokens: to the bit what weights in memory give."""
    runner, _ = open_model(folder, mapped=False)
    monkeypatch.setattr("runtime_py.load.free_memory", lambda: 1000)
    mapped, _ = open_model(folder, mapped=True)
    made = any("Vector" in node.op_type for node in read_graph(folder).nodes)  # in memory, from the codes in the file
    assert pages_of(folder, mapped=True, larger_than_memory=True) == {0 if made else PAGE}
    assert pages_of(folder, mapped=True) == pages_of(folder, mapped=False, larger_than_memory=True) == {0}
    one, other = runner.new_state(), mapped.new_state()
    for ids in (IDS[:9], IDS[9:10], IDS[10:11], IDS[11:]):
        np.testing.assert_array_equal(mapped.forward(other, ids), runner.forward(one, ids))
