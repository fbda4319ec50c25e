"""The comparison of engine and interpreter finds what it is there to find, and what it found stays mended."""

from __future__ import annotations

import random
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from export.artefacts.graph import Graph
from export.contract.formats.codebook import DOMAIN
from runtime_py.engine.engine import Engine
from runtime_py.engine.steps import table as op
from runtime_py.engine.steps.elementwise import Scale
from runtime_py.load import _runner
from tests.fuzz import compare, graphs
from tests.fuzz.compare import agree, follow, opened
from tests.fuzz.compose import Composer, named, through_a_file


def small(seed: int = 0, parts: int = 0) -> tuple[Composer, str]:
    """A composer, and its value of 64 columns that was looked up."""
    composer = Composer(random.Random(seed))
    table = composer.weight(composer.numbers.standard_normal((60, 64)))
    return composer, composer.value(64, "Gather", (table, "input_ids"))


def done(composer: Composer, x: str) -> Graph:
    attributes, stored = composer._codebook(60, composer.widths[x], 0)
    last = composer.value(60, "CodebookMatMul", (x, *stored), domain=DOMAIN, **attributes)
    return named(Graph(Path(), tuple(composer.nodes), composer.weights, (), (), {}, {}, 23, {}), last, 60)


def normed(composer: Composer, x: str) -> str:
    scale = composer.weight(composer.numbers.random(composer.widths[x]) + 0.5)
    return composer.value(composer.widths[x], "RMSNormalization", (x, scale), axis=-1, epsilon=1e-5)


def scaled(composer: Composer, x: str) -> str:
    return composer.value(composer.widths[x], "Mul", (x, composer.weight(1.5)))


@pytest.mark.parametrize("tokens, last_only", [(1, True), (5, False), (33, True), (300, False)])
def test_a_fault_of_one_step_in_the_last_bits_is_found(tokens, last_only):
    """A factor that is wrong by 1 in 20,000: the logits alone would move by less than int8's rounding does."""
    composer, x = small()
    graph = done(composer, normed(composer, scaled(composer, x)))
    for change, finds in ((0, False), (400, True)):
        runner, _, recorder = opened(graph)
        assert recorder is not None
        row = next(i for i, s in enumerate(recorder.planner.steps) if isinstance(s.step, Scale))
        column = op.ARGUMENTS + op.FIELDS[op.SCALE].index("factor")
        recorder.engine._program.table.steps[row, column] += change
        ids = [i % 60 for i in range(tokens)]
        ours = runner.forward(runner.new_state(), ids, last_only)
        follower = compare.Follower(graph)
        if finds:
            with pytest.raises(AssertionError, match="Mul n1: .* apart"):
                follow(follower, recorder, follower.new_state(), ids, last_only, ours)
        else:
            theirs = follow(follower, recorder, follower.new_state(), ids, last_only, ours)
            assert np.array_equal(ours, theirs) and follower.compared >= 4


@pytest.mark.parametrize("seed", range(8))
def test_a_value_that_is_written_over_is_compared_before(seed):
    """x + product(x) goes into the memory of x, which int8 activations were made from: both are compared."""
    composer, x = small(seed)
    x = scaled(composer, x)
    attributes, stored = composer._codebook(64, 64, 0)
    made = composer.value(64, "CodebookMatMul", (x, *stored), domain=DOMAIN, **attributes)
    graph = done(composer, normed(composer, composer.value(64, "Add", (x, made))))
    _, _, recorder = opened(graph)
    assert recorder is not None and any(getattr(s.step, "accumulate", 0) for s in recorder.planner.steps)
    names = {view.name for views in recorder.views.values() for view in views}
    assert {"n1.0", "n3.0"} <= names and "n2.0" not in names
    assert agree(graph, random.Random(seed)).result == "compiled: equal"


@pytest.mark.parametrize(
    "reader", ["norm", "scale", "product", "split", "reorder", "gate", "sum", "attention", "logits"]
)
def test_float16_is_computed_with_only_after_a_cast(reader):
    """A table of float16 gives float16: the steps, which know float32 alone, gave other results (by 3 %) than ONNX."""
    composer, x = small()
    table = composer.weight(composer.numbers.standard_normal((60, 64)), np.float16)
    half = composer.value(64, "Gather", (table, "input_ids"))
    if reader == "norm":
        y = normed(composer, half)
    elif reader == "scale":
        y = scaled(composer, half)
    elif reader == "product":
        y = composer.value(64, "MatMul", (half, composer.weight(np.eye(64))))
    elif reader == "split":
        y = composer.node("Split", (half, composer.weight([32, 32], np.int64)), 2, axis=-1)[0]
        composer.widths[y] = 32
    elif reader == "reorder":
        y = composer.value(64, "Gather", (half, composer.weight(np.arange(64)[::-1], np.int64)), axis=2)
    elif reader == "gate":
        y = composer.value(64, "Mul", (composer.node("Gelu", (x,))[0], half))
    elif reader == "sum":
        y = composer.value(64, "Add", (x, half))
    elif reader == "attention":
        y = composer.value(
            64, "Attention", (x, half, x, composer.mask(0)), q_num_heads=2, kv_num_heads=2, is_causal=1, scale=0.2
        )
    else:
        y = half
    runner, why = _runner(done(composer, y if reader == "logits" else normed(composer, y)), "int8", 1, ())
    assert not isinstance(runner, Engine) and "not planned" in why


def test_float16_that_is_cast_is_compiled_and_read_again():
    """Two casts of one lookup, and a sum that would overwrite the first."""
    composer, x = small()
    table = composer.weight(composer.numbers.standard_normal((60, 64)), np.float16)
    half = composer.value(64, "Gather", (table, "input_ids"))
    one = composer.value(64, "Cast", (half,), to=1)
    made = composer.value(64, "MatMul", (x, composer.weight(np.eye(64) / 3)))
    total = composer.value(64, "Add", (one, made))
    again = composer.value(64, "Cast", (half,), to=1)
    graph = done(composer, normed(composer, composer.value(64, "Add", (total, again))))
    for seed in range(4):
        assert agree(graph, random.Random(seed)).result == "compiled: equal"


@pytest.mark.parametrize("dims", [(16, 16), (16, 8), (8, 16), (24, 8)])
def test_rotations_of_different_head_sizes_compile(dims):
    """They were planned with one size for all, and refused at the first token."""
    composer, x = small()
    for dim in dims:
        parts = [composer.weight(composer.numbers.standard_normal((64, dim)) / 8) for _ in range(3)]
        query, key, value = (composer.value(dim, "MatMul", (x, part)) for part in parts)
        angles = composer.rotation(dim // 2)
        query, key = (composer.node("RotaryEmbedding", (v, *angles), num_heads=1)[0] for v in (query, key))
        inputs = (query, key, value, composer.mask(0))
        made = composer.value(dim, "Attention", inputs, q_num_heads=1, kv_num_heads=1, is_causal=1, scale=dim**-0.5)
        x = composer.value(64, "MatMul", (made, composer.weight(composer.numbers.standard_normal((dim, 64)))))
    for seed in range(3):
        outcome = agree(done(composer, normed(composer, x)), random.Random(seed))
        assert outcome.result == "compiled: equal", outcome


KINDS = ("plain", "pairs", "norm behind", "queries apart", "keys alone", "norm behind pairs")


@pytest.mark.parametrize("half", [16, 8, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_rotations_that_the_append_does_not_do_are_steps(kind, half):
    """Neighbouring pairs, norms behind the rotation, queries and keys that turn by different angles."""
    composer, x = small(half)
    heads, kv_heads, dim = 4, 2, 32
    sizes = [heads * dim, kv_heads * dim, kv_heads * dim]
    attributes, stored = composer._codebook(sum(sizes), 64, 0)
    fused = composer.value(sum(sizes), "CodebookMatMul", (x, *stored), domain=DOMAIN, **attributes)
    query, key, value = composer.node("Split", (fused, composer.weight(sizes, np.int64)), 3, axis=-1)
    angles = composer.rotation(half)
    chosen = {"interleaved": 1} if "pairs" in kind else {}
    chosen |= {} if 2 * half == dim else {"rotary_embedding_dim": 2 * half}
    if kind != "keys alone":
        others = composer.rotation(half) if kind == "queries apart" else angles
        (query,) = composer.node("RotaryEmbedding", (query, *others), num_heads=heads, **chosen)
    (key,) = composer.node("RotaryEmbedding", (key, *angles), num_heads=kv_heads, **chosen)
    if "norm behind" in kind:
        query, key = (by_head(composer, *pair, dim) for pair in ((query, heads), (key, kv_heads)))
    inputs = (query, key, value, composer.mask(0))
    made = composer.value(
        heads * dim, "Attention", inputs, q_num_heads=heads, kv_num_heads=kv_heads, is_causal=1, scale=dim**-0.5
    )
    graph = done(composer, normed(composer, made))
    _, _, recorder = opened(graph)
    steps = [type(planned.step).__name__ for planned in recorder.planner.steps]
    assert steps.count("Rotate") == {"plain": 0, "keys alone": 1}.get(kind, 2)
    for seed in range(3):
        assert agree(graph, random.Random(seed)).result == "compiled: equal"


def by_head(composer: Composer, value: str, heads: int, dim: int) -> str:
    """RMSNorm of every head."""
    (split,) = composer.node("Reshape", (value, composer.weight([0, 0, heads, dim], np.int64)))
    scale = composer.weight(composer.numbers.random(dim) + 0.5)
    (norm,) = composer.node("RMSNormalization", (split, scale), axis=-1, epsilon=1e-5)
    return composer.node("Reshape", (norm, composer.weight([0, 0, heads * dim], np.int64)))[0]


def test_a_graph_is_the_same_through_a_file(tmp_path):
    for number in range(30):
        graph = Composer(random.Random(number)).graph()
        read = through_a_file(graph, tmp_path / str(number))
        assert (read.inputs, {*read.weights}) == (graph.inputs, {*graph.weights})
        for one, other in zip(read.nodes, graph.nodes, strict=True):
            assert replace(one, attributes={}) == replace(other, attributes={})
            assert one.attributes == pytest.approx(dict(other.attributes), rel=1e-6)
        assert all(np.array_equal(read.weights[name], array) for name, array in graph.weights.items())


def test_a_graph_that_ends_the_process_is_found_by_its_number(monkeypatch, tmp_path):
    """And the run goes on behind it; a second run with its log repeats nothing."""
    script = tmp_path / "python"
    script.write_text(
        f"#!{sys.executable}\n"
        "import os, sys\n"
        "from tests.fuzz import graphs\n"
        "found = graphs.agree\n"
        "graphs.agree = lambda graph, *r: os.kill(os.getpid(), 11) if len(graph.nodes) == 4 else found(graph, *r)\n"
        "sys.argv = sys.argv[2:]\n"
        "graphs.main()\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr(graphs.sys, "executable", str(script))
    monkeypatch.setenv("PYTHONPATH", str(Path(graphs.__file__).parents[2]))
    expected = [n for n, graph, _ in graphs.graphs(3, 0, 25, []) if len(graph.nodes) == 4]
    whole = graphs.campaign(25, 3, [], log=tmp_path / "log")
    assert expected and whole.graphs == 25
    assert [int(f.split()[1]) for f in whole.findings] == expected
    assert all(f"status {-signal.SIGSEGV}" in f.split("alone:")[1] for f in whole.findings)
    monkeypatch.setattr(graphs, "in_a_process", None)
    assert graphs.campaign(25, 3, [], log=tmp_path / "log") == whole
