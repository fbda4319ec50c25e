"""The compiled engine: attention and elementwise kernels against numpy, whole models against the interpreter."""

from __future__ import annotations

import math
import threading

import numba as nb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.artefacts.reader import read_graph
from export.contract.errors import InputError
from export.contract.formats.codebook import CodebookLayout
from export.contract.packing import pack
from runtime_py.engine.engine import Engine
from runtime_py.engine.kernels import elementwise
from runtime_py.engine.kernels.attention import attend as attention
from runtime_py.engine.kernels.attention.kv_append import append_token
from runtime_py.engine.kernels.grouped import grouped_rows
from runtime_py.engine.layout import attention as sizes
from runtime_py.engine.layout import functions
from runtime_py.engine.records.errors import Unplannable
from runtime_py.engine.records.stored_matrix import matrix_record
from runtime_py.engine.walk import plan_decoder
from runtime_py.load import open_model
from runtime_py.reference.session import Session
from runtime_py.system.guard_pages import aligned_bytes
from runtime_py.system.memory import free_memory
from runtime_py.text.generator import TextGenerator
from tests.runtime_py.text.generating import greedy_tokens


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def reference_attention(query, keys, values, past, window, scale, cap, causal, sinks=None):
    """query [T, H, D], keys and values [past + T, KV, D], sinks [H] or None, all float64 -> [T, H * D]."""
    tokens, heads, _ = query.shape
    repeat = heads // keys.shape[1]
    out = np.zeros(query.shape)
    for t in range(tokens):
        low = max(0, past + t + 1 - window) if window else 0
        ahead = past + t + window if window else len(keys)
        seen = slice(low, past + t + 1 if causal else ahead)
        for h in range(heads):
            scores = keys[seen, h // repeat] @ query[t, h] * scale
            scores = cap * np.tanh(scores / cap) if cap else scores
            weights = softmax(scores) if sinks is None else softmax(np.append(scores, sinks[h]))[:-1]
            out[t, h] = weights @ values[seen, h // repeat]
    return out.reshape(tokens, -1)


@settings(max_examples=60)
@given(
    st.integers(1, 40),
    st.integers(0, 600),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([1, 3, 4, 7, 9]),
    st.sampled_from([8, 16, 20, 64]),
    st.sampled_from([0, 1, 5, 300]),
    st.sampled_from([0.0, 2.5]),
    st.booleans(),
    st.sampled_from([(2, 2), (4, 4), (2, 4), (4, 2)]),
    st.sampled_from([None, 1.0, 200.0]),
    st.integers(0, 2**31),
)
def test_attention(tokens, past, kv_heads, repeat, head_dim, window, cap, causal, items, spread, seed):
    rng = np.random.default_rng(seed)
    heads, total, width = kv_heads * repeat, past + tokens, sizes.value_width(head_dim)
    capacity = -(-total // 16) * 16
    query = rng.standard_normal((tokens, heads, head_dim)).astype(np.float32)
    keys = rng.standard_normal((total, kv_heads, head_dim)).astype(np.float32)
    values = rng.standard_normal((total, kv_heads, head_dim)).astype(np.float32)
    cache = [aligned_bytes(item * kv_heads * n * capacity) for item, n in zip(items, (head_dim, width))]
    for part in cache:
        part[:] = 255  # float16 NaN: what lies behind the last token must not matter
    spare, overflow = np.zeros((heads, head_dim), np.float32), np.zeros(2, np.int64)
    for p in range(total):
        append_token(
            spare.ctypes.data, keys[p].ctypes.data, values[p].ctypes.data, 0, 0, 0, cache[0].ctypes.data,
            cache[1].ctypes.data, *items, 16 * head_dim, capacity, heads, kv_heads, head_dim, p, overflow.ctypes.data,
        )  # fmt: skip
    scale, out = np.float32(head_dim**-0.5), np.zeros((tokens, heads * head_dim), np.float32)
    scratch = aligned_bytes(sizes.scratch_bytes(head_dim))
    sinks = None if spread is None else (spread * rng.standard_normal(heads)).astype(np.float32)
    own = 0 if sinks is None else sinks.ctypes.data
    for item in range(kv_heads * -(-repeat * tokens // attention.ROWS)):
        attention.attend_item(
            item, query.ctypes.data, heads * head_dim, cache[0].ctypes.data, cache[1].ctypes.data, *items,
            16 * head_dim, capacity, heads, kv_heads, head_dim, past, tokens, window, scale, np.float32(cap), causal,
            own, out.ctypes.data, heads * head_dim, scratch.ctypes.data,
        )  # fmt: skip
    assert not overflow.any()
    half = [a.astype(np.float16).astype(np.float64) for a in (keys, values)]  # also what a float32 cache holds
    wide = None if sinks is None else sinks.astype(np.float64)
    expected = reference_attention(query.astype(np.float64), *half, past, window, float(scale), cap, causal, wide)
    np.testing.assert_allclose(out, expected, atol=2e-5)  # float32 sums of up to 640 weighted values near one


@nb.njit
def on_vectors(kind, source, count, target):
    elementwise.activate(kind, source, 0, count, target)


@pytest.mark.parametrize("kind", range(5))
def test_activations(kind):
    x = np.concatenate([np.linspace(-30, 30, 4001), [-1e4, -100, 0, 100, 1e4, 1e-6]]).astype(np.float32)
    wide = x.astype(np.float64)
    expected = {
        functions.SILU: lambda: wide / (1 + np.exp(np.minimum(-wide, 700))),
        functions.GELU: lambda: 0.5 * wide * (1 + np.array([math.erf(v / math.sqrt(2)) for v in wide])),
        functions.GELU_TANH: lambda: 0.5 * wide * (1 + np.tanh(np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3))),
        functions.RELU: lambda: np.maximum(wide, 0),
        functions.TANH: lambda: np.tanh(wide),
    }[kind]()
    out = np.zeros_like(x)
    on_vectors(kind, x.ctypes.data, x.size, out.ctypes.data)
    # relative to the input: the logistic and erf approximations are good to 3e-7 of one
    assert np.all(np.abs(out - expected) <= 4e-7 * np.maximum(np.abs(wide), 1))
    gate = np.full_like(x, 3.0)
    both = np.zeros_like(x)
    elementwise.activate(kind, x.ctypes.data, gate.ctypes.data, x.size, both.ctypes.data)
    np.testing.assert_allclose(both, 3 * out, rtol=1e-6)


@given(st.integers(1, 70), st.sampled_from([0.3, 7.0]), st.sampled_from([1.702, -0.5, 3.0]), st.integers(0, 2**31))
def test_a_clamped_gate(columns, limit, alpha, seed):
    rng = np.random.default_rng(seed)
    gate, up = (10 * rng.standard_normal((2, columns))).astype(np.float32)
    out = np.full(columns + 1, 7, np.float32)
    numbers = columns, np.float32(alpha), np.float32(limit)
    elementwise.clamped_gate(gate.ctypes.data, up.ctypes.data, *numbers, out.ctypes.data)
    cut = np.minimum(gate.astype(np.float64), limit)
    expected = cut / (1 + np.exp(-alpha * cut)) * (np.clip(up, -limit, limit) + 1)
    np.testing.assert_allclose(out[:columns], expected, atol=1e-5 * (1 + limit))
    assert out[columns] == 7


@given(st.integers(1, 300), st.integers(0, 2**31))
def test_norms(columns, seed):
    rng = np.random.default_rng(seed)
    x, scale, bias = (rng.standard_normal(columns).astype(np.float32) for _ in range(3))
    out = np.full(columns + 1, 7, np.float32)
    elementwise.rms_norm(x.ctypes.data, scale.ctypes.data, columns, np.float32(1e-5), out.ctypes.data)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(out[:-1], wide / np.sqrt(np.mean(wide**2) + 1e-5) * scale, atol=1e-5)
    elementwise.layer_norm(
        x.ctypes.data, scale.ctypes.data, bias.ctypes.data, columns, np.float32(1e-5), out.ctypes.data
    )
    centred = wide - wide.mean()
    np.testing.assert_allclose(out[:-1], centred / np.sqrt(np.mean(centred**2) + 1e-5) * scale + bias, atol=2e-5)
    assert out[-1] == 7  # nothing behind the row is written


@settings(max_examples=30)
@given(st.sampled_from([1, 16, 48, 200]), st.integers(1, 8), st.integers(1, 400), st.integers(1, 4), st.integers(0, 99))
def test_grouped_codebooks(group_size, bits, columns, tokens, seed):
    rng = np.random.default_rng(seed)
    layout = CodebookLayout(bits, columns, 9, group_size, 2, 3)
    codes = pack(rng.integers(0, 1 << bits, (9, columns), dtype=np.uint8), bits)
    book = rng.integers(-128, 128, layout.codebook_shape).astype(np.int8)
    scale = rng.random(layout.scale_shape).astype(np.float32)
    record, _keep = matrix_record(layout, codes, book, scale)
    x = rng.standard_normal((tokens, columns)).astype(np.float32)
    out, scratch = np.zeros((tokens, 9), np.float32), aligned_bytes(256 + 4 * columns)
    grouped_rows(
        x.ctypes.data, columns, tokens, record.ctypes.data, layout.groups, layout.columns_per_group, 0, 9,
        out.ctypes.data, 9, 0, False, scratch.ctypes.data,
    )  # fmt: skip
    weights = layout.dequantized(codes, book, scale)
    assert np.all(np.abs(out - x @ weights.T.astype(np.float64)) <= 2e-6 * (np.abs(x) @ np.abs(weights).T) + 1e-6)


@settings(max_examples=40)
@given(st.integers(1, 70), st.sampled_from([np.float16, np.float32]), st.integers(1, 3), st.integers(0, 2**31))
def test_dense_rows(columns, dtype, tokens, seed):
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((5, columns)).astype(dtype)
    x, bias = rng.standard_normal((tokens, columns)).astype(np.float32), rng.standard_normal(5).astype(np.float32)
    out = np.ones((tokens, 5), np.float32)
    elementwise.dense_rows(
        x.ctypes.data, tokens, columns, weights.ctypes.data, weights.itemsize, columns, 1, 5, out.ctypes.data, 5,
        bias.ctypes.data, True,
    )  # fmt: skip
    expected = x.astype(np.float64) @ weights.T.astype(np.float64) + bias + 1
    np.testing.assert_allclose(out[:, 1:], expected[:, 1:], atol=1e-5)
    np.testing.assert_array_equal(out[:, 0], 1)  # rows outside first..last are left alone


def kl(reference, logits):
    p, q = softmax(reference.astype(np.float64)), softmax(logits.astype(np.float64))
    return float((p * np.log(p / q)).sum(-1).mean())


@pytest.mark.parametrize("fixture", ["demo_folder", "wide_folder"])
def test_logits_are_the_interpreters_up_to_int8_activations(fixture, request):
    folder = request.getfixturevalue(fixture)
    engine, why = open_model(folder)
    assert isinstance(engine, Engine) and why == ""
    session = Session(folder)
    ids = np.random.default_rng(0).integers(3, session.vocab_size, 300)
    expected = session.forward(session.new_state(), ids)
    state = engine.new_state()
    # a prefill, single tokens, then more than one chunk's worth, across a growth of the cache
    pieces = [engine.forward(state, ids[a:b]) for a, b in ((0, 7), (7, 8), (8, 9), (9, 290), (290, 300))]
    # measured: 1e-3 on random tokens, where the 3-bit weights cost ten times that
    assert kl(expected, np.concatenate(pieces)) < 3e-3
    whole = engine.forward(engine.new_state(), ids)
    np.testing.assert_allclose(np.concatenate(pieces), whole, atol=0.05 * np.abs(whole).max())
    # One token goes through another product than forty: the same integers, float32 sums in another order.
    last = engine.forward(engine.new_state(), ids[:40], last_only=True)
    np.testing.assert_allclose(last, engine.forward(engine.new_state(), ids[:40])[-1:], rtol=1e-5, atol=1e-4)


def test_threads_change_nothing(demo_folder):
    ids = np.random.default_rng(1).integers(3, 500, 50)
    results = []
    for threads in (1, 2, 3):
        engine = Engine(read_graph(demo_folder), threads)
        engine._program.alone_below = 0
        state = engine.new_state()
        results.append(
            np.concatenate([engine.forward(state, ids), engine.forward(state, [5]), engine.forward(state, [6])])
        )
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)


def test_states_and_threads_do_not_disturb_one_another(demo_folder):
    generator = TextGenerator(demo_folder)
    prompts = ["Once upon a time", "One day, a dog", "The sun"]

    def tell(prompt):
        ids = generator.encode(prompt)
        state = generator.session.new_state()
        return greedy_tokens(generator.session, state, ids, 40)

    alone = [tell(prompt) for prompt in prompts]
    together: dict[int, list[int]] = {}
    workers = [threading.Thread(target=lambda i=i: together.update({i: tell(prompts[i])})) for i in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [together[i] for i in range(3)] == alone


def test_greedy_story_stays_close_to_the_interpreters(demo_folder):
    """int8 activations may turn a near tie; the first words of a greedy story survive."""
    engine, interpreter = TextGenerator(demo_folder), TextGenerator(demo_folder, "float32")
    ids = engine.encode("Once upon a time")
    stories = [greedy_tokens(g.session, g.session.new_state(), ids, 30) for g in (engine, interpreter)]
    assert stories[0][:10] == stories[1][:10]


def test_weights_are_read_only_where_that_helps(demo_folder, monkeypatch):
    from pathlib import Path

    from runtime_py import load

    real, answers = Path.read_text, {}
    weights = (demo_folder / "model.onnx.data").stat().st_size

    def fake(self, *args, **kwargs):
        return answers[str(self)] if str(self) in answers else real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", fake)
    group = {"memory.max": "max", "memory.current": "5000", "memory.stat": "anon 3\ninactive_file 1000\n"}
    for pages, free, limit, mapped in (
        ("always [madvise] never", 10**9, "max", False),
        ("always madvise [never]", 10**9, "max", True),
        ("[always]", 1, "max", True),
        ("[always]", 10**9, str(10**9), False),
        ("[always]", 10**9, str(4000 + 2 * weights - 1), True),
    ):
        answers |= {f"/sys/fs/cgroup/{name}": text for name, text in (group | {"memory.max": limit}).items()}
        answers["/sys/kernel/mm/transparent_hugepage/enabled"] = pages
        answers["/proc/meminfo"] = f"MemTotal: 5 kB\nMemAvailable: {free} kB\n"
        assert load._stays_mapped(None, None, weights) is mapped
    answers |= {"/proc/meminfo": "nothing of the kind", "/sys/fs/cgroup/memory.max": "max"}
    assert load._stays_mapped(None, None, weights) is True
    own = "/sys/fs/cgroup/user.slice/some.scope"  # as `systemd-run --scope -p MemoryMax=9000` makes it
    answers["/proc/self/cgroup"] = "1:cpu:/\n0::/user.slice/some.scope\n"
    answers |= {f"{own}/{name}": text for name, text in (group | {"memory.max": "9000"}).items()}
    assert free_memory() == 9000 - 5000 + 1000


def test_a_cache_that_grows_keeps_its_contents(demo_folder):
    engine, _ = open_model(demo_folder)
    ids = np.random.default_rng(3).integers(3, 500, 300)
    grown, once = engine.new_state(), engine.new_state()
    for start in range(0, 300, 60):  # 60, 120, ... tokens: the capacity goes 256, 512
        last = engine.forward(grown, ids[start : start + 60])
    assert grown.capacity == 512
    np.testing.assert_allclose(last[-1], engine.forward(once, ids)[-1], atol=0.05 * np.abs(last).max())


def test_wrong_input_is_refused(demo_folder):
    engine, _ = open_model(demo_folder)
    with pytest.raises(InputError, match="outside the vocabulary"):
        engine.forward(engine.new_state(), [engine.vocab_size])
    with pytest.raises(InputError, match="outside the vocabulary"):
        engine.forward(engine.new_state(), [-1])
    with pytest.raises(InputError, match="empty"):
        engine.forward(engine.new_state(), [])
    with pytest.raises(InputError, match="activations"):
        open_model(demo_folder, "int3")
    with pytest.raises(InputError, match="threads"):
        open_model(demo_folder, threads=0)


def test_a_graph_that_cannot_be_planned_says_why(demo_folder):
    from dataclasses import replace

    graph = read_graph(demo_folder)
    nodes = tuple(
        replace(n, attributes={**n.attributes, "is_causal": 0}) if n.op_type == "Attention" else n for n in graph.nodes
    )
    with pytest.raises(Unplannable, match="attention"):
        plan_decoder(replace(graph, nodes=nodes), 32)


@pytest.mark.parametrize(
    "op_type, change, message",
    [
        ("RMSNormalization", {"weight": 1}, "numbers where"),
        ("Attention", {"q_num_heads": 0}, "heads"),
        ("Attention", {"q_num_heads": 3}, "heads"),
        ("Attention", {"kv_num_heads": 0}, "heads"),
    ],
)
def test_sizes_that_kernels_would_trust_are_checked(demo_folder, op_type, change, message):
    from dataclasses import replace

    graph = read_graph(demo_folder)
    weights = dict(graph.weights)
    if "weight" in change:
        name = next(n.inputs[1] for n in graph.nodes if n.op_type == op_type)
        weights[name] = weights[name][:-1]
        graph = replace(graph, weights=weights)
    else:
        nodes = tuple(
            replace(n, attributes={**n.attributes, **change}) if n.op_type == op_type else n for n in graph.nodes
        )
        graph = replace(graph, nodes=nodes)
    with pytest.raises(Unplannable, match=message):
        plan_decoder(graph, 32)
