"""The engine's gated delta nets: kernels against numpy, models against the interpreter, what is not planned."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.artefacts.graph import Graph
from export.artefacts.reader import read_graph
from export.contract.errors import NotFiniteError
from export.contract.operators.causal_convolution import CAUSAL_CONVOLUTION, causal_convolution
from export.contract.operators.delta_rule import GATED_DELTA_RULE, DeltaRuleLayout, gated_delta_rule
from runtime_py.engine.engine import Engine
from runtime_py.engine.kernels.recurrent.delta_net import convolve_rows, keep_rows
from runtime_py.engine.layout.functions import SILU
from runtime_py.engine.layout.recurrent import COLUMNS
from runtime_py.engine.layout.recurrent import DELTA_SCRATCH as SCRATCH
from runtime_py.engine.loop.delta_net import run_delta_rule
from runtime_py.engine.records.errors import Unplannable
from runtime_py.engine.records.stored_matrix import runs_directly
from runtime_py.engine.steps.delta_net import DeltaRule, blocks
from runtime_py.engine.walk import plan_decoder
from runtime_py.load import open_model
from runtime_py.reference.expansion import expand_products
from runtime_py.reference.session import Session
from tests.conftest import _checkpoint, _package
from tests.export.graph.families import random_text, tiny_model
from tests.fuzz.compare import agree

IDS = np.random.default_rng(1).integers(0, 96, 60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    work = tmp_path_factory.mktemp("delta")
    tiny_model("qwen3_5_text", work / "source")
    text = random_text(work / "text.txt")
    chosen = {"sequences": 2, "sequence_length": 32, "passes": 1, "bits": 4}
    return _package(_checkpoint(work / "source", str(text), None, work / "q", **chosen), work / "model")


def packed(state: np.ndarray) -> np.ndarray:
    """A state [heads, key_dim, value_dim] as the kernel has it: [heads, blocks, key_dim, COLUMNS]."""
    heads, key_dim, value_dim = state.shape
    wide = np.zeros((heads, key_dim, blocks(value_dim) * COLUMNS), np.float32)
    wide[:, :, :value_dim] = state
    return np.ascontiguousarray(wide.reshape(heads, key_dim, -1, COLUMNS).transpose(0, 2, 1, 3))


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 50), st.integers(2, 6), st.integers(1, 9), st.booleans(), st.booleans(), st.integers(0, 2**31))
def test_a_convolution_is_that_of_the_operator(columns, width, tokens, active, biased, seed):
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((tokens, columns + 3)).astype(np.float32)  # rows lie in wider ones
    past, kernel = (rng.standard_normal((n, columns)).astype(np.float32) for n in (width - 1, width))
    bias = np.float32(rng.standard_normal(columns))
    out, present = np.full((tokens + 1, columns), 7, np.float32), np.full((width, columns), 7, np.float32)
    given_ = (mixed.ctypes.data, columns + 3, past.ctypes.data, columns, width)
    for token in range(tokens):
        to = out.ctypes.data + 4 * columns * token
        numbers = (kernel.ctypes.data, bias.ctypes.data if biased else 0, SILU if active else -1)
        convolve_rows(*given_, *numbers, token, 0, columns, to)
    keep_rows(*given_, tokens, 0, columns, present.ctypes.data)
    x, weight = mixed[None, :, :columns], np.ascontiguousarray(kernel.T[:, None])
    expected, state = causal_convolution(x, weight, np.ascontiguousarray(past.T[None]))
    expected = expected + bias if biased else expected
    expected = expected / (1 + np.exp(-expected)) if active else expected
    np.testing.assert_allclose(out[:tokens], expected[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(present[: width - 1], state[0].T)
    assert (out[tokens] == 7).all() and (present[width - 1] == 7).all()


def run_rule(rows, numbers, layout, epsilon, state, sizes):
    """Y and the state of calls of these sizes, one after another. rows: Q, K, V, decay, beta [tokens, columns]."""
    width = rows[2].shape[1]
    mixed = np.ascontiguousarray(np.concatenate(rows[:3], axis=1))
    starts = np.cumsum([0, *(row.shape[1] for row in rows[:2])])
    out, scratch = np.full((len(mixed) + 1, width), 7, np.float32), np.zeros(SCRATCH, np.uint8)
    first = 0
    for size in sizes:
        after, counter = np.full(state.size + 1, 7, np.float32), np.zeros(1, np.int64)
        query, key, value = (mixed.ctypes.data + 4 * (first * mixed.shape[1] + start) for start in starts)
        decay, beta = (row.ctypes.data + 4 * first * row.shape[1] for row in rows[3:])
        values = DeltaRule.Values(
            out=out.ctypes.data + 4 * first * width, query=query, key=key, value=value, stride=mixed.shape[1],
            decay=decay, decay_stride=layout.value_heads, beta=beta, beta_stride=layout.value_heads,
            rate=numbers[0].ctypes.data, bias=numbers[1].ctypes.data, key_heads=layout.key_heads,
            value_heads=layout.value_heads, key_dim=layout.key_dim, value_dim=layout.value_dim,
            epsilon=np.float32(epsilon), past=state.ctypes.data, present=after.ctypes.data,
        )  # fmt: skip
        run_delta_rule(values, size, counter.ctypes.data, scratch.ctypes.data)
        assert after[-1] == 7
        state, first = after[:-1].reshape(state.shape).copy(), first + size
    assert (out[-1] == 7).all()
    return out[:-1], state


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 40), st.integers(1, 70), st.integers(1, 40),
    st.integers(0, 2**31),
)  # fmt: skip
def test_the_rule_is_that_of_the_operator(key_heads, repeat, key_dim, value_dim, tokens, seed):
    rng, heads = np.random.default_rng(seed), key_heads * repeat
    layout = DeltaRuleLayout(key_heads, heads, key_dim, value_dim, 1e-6)
    widths = (key_heads * key_dim, key_heads * key_dim, heads * value_dim, heads, heads)
    rows = [np.ascontiguousarray(3 * rng.standard_normal((tokens, width)), np.float32) for width in widths]
    rows[3] *= np.float32(5)
    numbers = [np.float32(-np.exp(rng.standard_normal(heads))), np.float32(rng.standard_normal(heads))]
    past = np.float32(rng.standard_normal(layout.state))
    expected, state = gated_delta_rule(*(row[None] for row in rows), *numbers, past[None], layout)
    found, after = run_rule(rows, numbers, layout, 1e-6, packed(past), [tokens])
    scale = max(1.0, np.abs(expected).max(), np.abs(state).max())
    np.testing.assert_allclose(found, expected[0], atol=2e-5 * scale)
    np.testing.assert_allclose(after, packed(state[0]), atol=2e-5 * scale)
    sizes = [1] * min(tokens, 3) + [tokens - 3] * (tokens > 3)  # in pieces: the same bits
    again, last = run_rule(rows, numbers, layout, 1e-6, packed(past), sizes)
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
        assert outcome.result == "compiled: equal" and outcome.compared > 50
        assert outcome.kinds >= {"CausalConvolution", "DeltaRule"}


def test_a_prompt_in_pieces_leaves_the_same_bits(folder):
    """Pieces of two tokens and more, as for every other step: one alone is summed in another order by products."""
    engine, _ = open_model(folder)
    whole, parts = engine.new_state(), engine.new_state()
    expected = engine.forward(whole, IDS)
    found = [engine.forward(parts, IDS[a:b]) for a, b in ((0, 2), (2, 19), (19, 35), (35, 60))]
    np.testing.assert_array_equal(np.concatenate(found), expected)
    for one, other in zip(parts.recurrent.arrays, whole.recurrent.arrays):
        np.testing.assert_array_equal(one, other)


def test_a_call_that_ends_badly_leaves_the_state_as_it_was(folder):
    """One token, one chunk and several chunks: the calls after it give what they give without it."""
    engine, _ = open_model(folder)
    assert isinstance(engine, Engine)
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


def test_what_is_no_delta_net_is_not_planned(folder):
    graph = expand_products(read_graph(folder), keep=runs_directly)
    plan_decoder(graph, 256)
    conv, rule = (next(n for n in graph.nodes if n.op_type == kind) for kind in (CAUSAL_CONVOLUTION, GATED_DELTA_RULE))
    states = [info for info in graph.inputs if info.name.endswith("_state")]
    narrow = [replace(i, shape=(*i.shape[:-1], i.shape[-1] + 1)) if i in states else i for i in graph.inputs]
    spoiled = [
        replace(graph, inputs=tuple(narrow)),  # a state of another width
        _changed(graph, CAUSAL_CONVOLUTION, inputs=(*conv.inputs[:2], states[1].name)),
        _changed(graph, CAUSAL_CONVOLUTION, inputs=(conv.inputs[0], conv.inputs[0], conv.inputs[2])),
        _changed(graph, CAUSAL_CONVOLUTION, outputs=(conv.outputs[0], rule.outputs[1])),
        _changed(graph, GATED_DELTA_RULE, inputs=(*rule.inputs[:7], states[-1].name)),
        _changed(graph, GATED_DELTA_RULE, inputs=(rule.inputs[0], rule.inputs[2], *rule.inputs[2:])),
        _changed(graph, GATED_DELTA_RULE, inputs=(*rule.inputs[:3], rule.inputs[2], *rule.inputs[4:])),
        _changed(graph, GATED_DELTA_RULE, inputs=(*rule.inputs[:5], rule.inputs[3], *rule.inputs[6:])),
        _changed(graph, GATED_DELTA_RULE, attributes={**rule.attributes, "key_heads": 1, "value_heads": 1}),
        replace(graph, nodes=tuple(node for node in graph.nodes if node is not rule)),
        replace(graph, nodes=(*graph.nodes, replace(rule, name="again", outputs=("more", "again")))),
    ]
    for wrong in spoiled:
        with pytest.raises(Unplannable):
            plan_decoder(wrong, 256)
