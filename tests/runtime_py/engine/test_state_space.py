"""The engine's state spaces: the kernel against numpy, models against the interpreter, what is not planned."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.artefacts.reader import read_graph
from export.contract.errors import InputError
from export.contract.operators.state_space import (
    LARGEST,
    SELECTIVE_STATE_SPACE,
    StateSpaceLayout,
    selective_state_space,
)
from runtime_py.engine.layout.recurrent import SPACE_SCRATCH as SCRATCH
from runtime_py.engine.loop.state_space import run_state_space
from runtime_py.engine.records.errors import Unplannable
from runtime_py.engine.records.stored_matrix import runs_directly
from runtime_py.engine.steps.state_space import StateSpace
from runtime_py.engine.walk import plan_decoder
from runtime_py.load import open_model
from runtime_py.reference.expansion import expand_products
from runtime_py.reference.session import Session
from tests.conftest import _checkpoint, _package
from tests.export.graph.families import random_text, tiny_model
from tests.fuzz.compare import agree
from tests.runtime_py.engine.test_delta_net import _changed, packed

IDS = np.random.default_rng(1).integers(0, 96, 60)


@pytest.fixture(scope="module", params=["mamba2", "mamba2 biased", "falcon_h1", "nemotron_h dense"])
def folder(request, tmp_path_factory):
    work = tmp_path_factory.mktemp("space")
    tiny_model(request.param, work / "source")
    text = random_text(work / "text.txt")
    chosen = {"sequences": 2, "sequence_length": 32, "passes": 1, "bits": 4}
    return _package(_checkpoint(work / "source", str(text), None, work / "q", **chosen), work / "model")


def run_space(rows, numbers, layout, state, sizes):
    """Y and the state of calls of these sizes, one after another. rows: X, step, B, C [tokens, columns]."""
    width = rows[0].shape[1]
    mixed = np.ascontiguousarray(np.concatenate([rows[0], rows[2], rows[3]], axis=1))
    starts = np.cumsum([0, width, rows[2].shape[1]])
    out, scratch = np.full((len(mixed) + 1, width), 7, np.float32), np.zeros(SCRATCH, np.uint8)
    first = 0
    for size in sizes:
        after, counter = np.full(state.size + 1, 7, np.float32), np.zeros(1, np.int64)
        value, written, read = (mixed.ctypes.data + 4 * (first * mixed.shape[1] + start) for start in starts)
        values = StateSpace.Values(
            out=out.ctypes.data + 4 * first * width, value=value, written=written, read=read, stride=mixed.shape[1],
            step=rows[1].ctypes.data + 4 * first * layout.heads, step_stride=layout.heads,
            rate=numbers[0].ctypes.data, bias=numbers[1].ctypes.data, skip=numbers[2].ctypes.data, heads=layout.heads,
            groups=layout.groups, state_size=layout.state_size, head_dim=layout.head_dim,
            least=np.float32(layout.least), most=np.float32(layout.most), past=state.ctypes.data,
            present=after.ctypes.data,
        )  # fmt: skip
        run_state_space(values, size, counter.ctypes.data, scratch.ctypes.data)
        assert after[-1] == 7
        state, first = after[:-1].reshape(state.shape).copy(), first + size
    assert (out[-1] == 7).all()
    return out[:-1], state


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 40), st.integers(1, 70), st.integers(1, 40),
    st.integers(0, 2**31),
)  # fmt: skip
def test_the_step_is_that_of_the_operator(groups, repeat, size, dim, tokens, seed):
    rng, heads = np.random.default_rng(seed), groups * repeat
    layout = StateSpaceLayout(heads, groups, size, dim, *((0.0, LARGEST) if seed % 2 else (0.25, 2.0)))
    widths = (heads * dim, heads, groups * size, groups * size)
    rows = [np.ascontiguousarray(rng.standard_normal((tokens, width)), np.float32) for width in widths]
    rows[1] *= np.float32(5)
    numbers = [np.float32(-np.exp(rng.standard_normal(heads))), *np.float32(rng.standard_normal((2, heads)))]
    past = np.float32(rng.standard_normal(layout.state))
    expected, state = selective_state_space(*(row[None] for row in rows), *numbers, past[None], layout)
    found, after = run_space(rows, numbers, layout, packed(past), [tokens])
    scale = max(1.0, np.abs(expected).max(), np.abs(state).max())
    np.testing.assert_allclose(found, expected[0], atol=2e-5 * scale)
    np.testing.assert_allclose(after, packed(state[0]), atol=2e-5 * scale)
    sizes = [1] * min(tokens, 3) + [tokens - 3] * (tokens > 3)  # in pieces: the same bits
    again, last = run_space(rows, numbers, layout, packed(past), sizes)
    np.testing.assert_array_equal(again, found)
    np.testing.assert_array_equal(last, after)


@pytest.mark.parametrize("isa", ["", "avx2", "portable"])
def test_the_engine_computes_what_the_interpreter_does(folder, isa, monkeypatch):
    if isa:
        monkeypatch.setenv("ATHENA_ISA", isa)
    engine, why = open_model(folder)
    assert why == ""
    session = Session(folder)
    expected = session.forward(session.new_state(), IDS)
    state = engine.new_state()
    pieces = ((0, 37), (37, 38), (38, 39), (39, 60))
    found = np.concatenate([engine.forward(state, IDS[a:b]) for a, b in pieces])
    error = np.sqrt(np.mean((found - expected) ** 2, axis=1)) / np.sqrt(np.mean(expected**2))
    assert np.median(error) < 0.08 and error.max() < 0.5  # int8 activations, which some tokens feel more than others


def test_every_node_is_the_interpreter_s_on_the_engine_s_own_values(folder):
    for seed in range(3):
        outcome = agree(read_graph(folder), random.Random(seed))
        assert outcome.result == "compiled: equal" and outcome.compared > 20
        assert outcome.kinds >= {"CausalConvolution", "StateSpace"}


def test_a_prompt_in_pieces_leaves_the_same_bits(folder):
    """Pieces of two tokens and more, as for every other step: one alone is summed in another order by products."""
    engine, _ = open_model(folder)
    whole, parts = engine.new_state(), engine.new_state()
    expected = engine.forward(whole, IDS)
    found = [engine.forward(parts, IDS[a:b]) for a, b in ((0, 2), (2, 19), (19, 35), (35, 60))]
    np.testing.assert_array_equal(np.concatenate(found), expected)
    for one, other in zip(parts.recurrent.arrays, whole.recurrent.arrays):
        np.testing.assert_array_equal(one, other)


def test_a_text_that_is_cut_back_goes_on_as_a_fresh_one(folder):
    engine, _ = open_model(folder)
    state, fresh = engine.new_state(), engine.new_state()
    engine.forward(state, IDS[:20])
    engine.forward(state, IDS[20:40])
    left = engine.rewind(state, 25)
    assert left == 20
    engine.forward(fresh, IDS[:20])
    np.testing.assert_array_equal(engine.forward(state, IDS[left:50]), engine.forward(fresh, IDS[20:50]))


def test_what_is_no_state_space_is_not_planned(folder):
    graph = expand_products(read_graph(folder), keep=runs_directly)
    plan_decoder(graph, 256)
    space = next(n for n in graph.nodes if n.op_type == SELECTIVE_STATE_SPACE)
    given_, other = space.inputs, next(info.name for info in graph.inputs if info.name.endswith("conv_state"))
    heads, groups = space.attributes["heads"], space.attributes["groups"]
    spoiled = [
        {"inputs": (*given_[:7], other)},
        {"inputs": (given_[2], given_[1], given_[0], *given_[3:])},
        {"inputs": (*given_[:1], given_[2], *given_[2:])},
        {"inputs": (*given_[:4], given_[1], *given_[5:])},
        {"attributes": {**space.attributes, "heads": heads // 2, "groups": min(groups, heads // 2)}},
        {"outputs": (space.outputs[0], "another")},
    ]
    for wrong in spoiled:
        with pytest.raises((Unplannable, InputError)):
            plan_decoder(_changed(graph, SELECTIVE_STATE_SPACE, **wrong), 256)
