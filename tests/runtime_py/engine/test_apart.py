"""Single tokens of several texts at once: to the bit what each text gets alone, whatever comes with it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from export.contract.errors import InputError, NotFiniteError
from export.contract.formats.codebook import CodebookLayout
from export.contract.formats.trellis import TrellisLayout
from runtime_py.engine.engine import Engine
from runtime_py.engine.kernels.apart.places import place
from runtime_py.engine.kernels.apart.rows import ROWS, SCRATCH_BYTES, matvec_apart_rows
from runtime_py.engine.kernels.matvec import matvec_rows
from runtime_py.engine.kernels.quantize import quantize_token
from runtime_py.engine.layout.products import HIGH_TOKEN, MOST_TOKENS, padded, width_tag
from runtime_py.engine.records.stored_matrix import matrix_record, matrix_width
from runtime_py.load import open_model
from runtime_py.machine.isa import ISAS, WEIGHT_OFFSET, available
from runtime_py.system.guard_pages import aligned_bytes
from tests.runtime_py.engine.activation_reference import with_outliers
from tests.runtime_py.engine.instruction_sets import all_or_one, at_width
from tests.runtime_py.engine.test_products import LAYOUTS, PATHS, random_parts
from tests.runtime_py.engine.test_range import huge
from tests.runtime_py.tiny import write_tiny
from toolchain.settings.quantize import QuantizeSettings
from toolchain.settings.razor import RazorSettings


@pytest.mark.parametrize("isa, width", all_or_one(available()))
@settings(max_examples=25)
@given(
    st.one_of(LAYOUTS, PATHS), st.integers(1, MOST_TOKENS), st.lists(st.integers(0, 70), max_size=3), st.booleans(),
    st.integers(0, 2**31),
)  # fmt: skip
@example(CodebookLayout(4, 320, 33), MOST_TOKENS, [5], True, 1)
@example(CodebookLayout(3, 192, 10), MOST_TOKENS, [], False, 1)  # no whole block
@example(CodebookLayout(2, 250, 9), 6, [4], True, 1)
@example(CodebookLayout(4, 384, 8), 4, [], False, 1)
@example(CodebookLayout(4, 448, 13), 9, [], True, 1)
@example(TrellisLayout(2, 448, 20, 8, 20), 3, [7], False, 1)
@example(TrellisLayout(3, 900, 50, 8, 3), 7, [2, 9], False, 1)  # fewer rows to a codebook than pass at a time
def test_a_product_for_several_is_that_for_each(isa, width, layout, tokens, cuts, more, seed):
    rng, layout = np.random.default_rng(seed), at_width(layout, width)
    record, keep = matrix_record(layout, *random_parts(layout, rng), halves=True)
    tag, offset, kind = ISAS[isa], WEIGHT_OFFSET[isa], width_tag(matrix_width(record))
    blocks, wide = -(-layout.K // 256), padded(layout.K)
    x = rng.standard_normal((tokens, layout.K)).astype(np.float32)
    x = with_outliers(x, rng) if seed % 2 else x
    sizes = (256, 64, 4, HIGH_TOKEN)
    together, alone = ([aligned_bytes(count * blocks * n) for n in sizes] for count in (MOST_TOKENS, 1))
    bias = rng.standard_normal(layout.N).astype(np.float32)
    wanted = (
        rng.standard_normal((tokens, layout.N)).astype(np.float32) if more else np.zeros((tokens, layout.N), np.float32)
    )
    found, shift = wanted.copy(), bias.ctypes.data if more else 0
    scratch = aligned_bytes(SCRATCH_BYTES + wide)
    for t, row in enumerate(x):
        addresses = [a.ctypes.data for a in alone]
        quantize_token(tag, offset, row.ctypes.data, layout.K, 0, blocks, *addresses)
        own = aligned_bytes(256 + wide)
        matvec_rows(
            tag, kind, record.ctypes.data, *addresses, 0, layout.N, wanted[t].ctypes.data, shift, more, own.ctypes.data
        )
        for b in range(blocks):
            parts = [a.ctypes.data + n * (place(t, b, tokens) - b) for a, n in zip(together, sizes)]
            quantize_token(tag, offset, row.ctypes.data, layout.K, b, b + 1, *parts)
    edges = sorted({0, layout.N, *(cut for cut in cuts if cut < layout.N)})
    for first, last in itertools.pairwise(edges):
        matvec_apart_rows(
            tag, kind, record.ctypes.data, *(a.ctypes.data for a in together), tokens, first, last, found.ctypes.data,
            shift, more, scratch.ctypes.data,
        )  # fmt: skip
    np.testing.assert_array_equal(found, wanted)
    assert keep and ROWS > 1


def both_ways(engine, prompts, steps, rng):
    """Logits of some steps for texts with these prompts: together, and each alone."""
    texts, twins = ([engine.new_state() for _ in prompts] for _ in range(2))
    for prompt, text, twin in zip(prompts, texts, twins):
        for state in (text, twin):
            if len(prompt):
                engine.forward(state, prompt, last_only=True)
    for _ in range(steps):
        ids = rng.integers(3, min(engine.vocab_size, 200), len(prompts)).tolist()
        yield engine.step(texts, ids), [engine.forward(state, [i], last_only=True)[-1] for state, i in zip(twins, ids)]
    assert [text.length for text in texts] == [twin.length for twin in twins]


def same(model, prompts, steps=4, seed=0):
    assert isinstance(model, Engine) and model._program.takes_apart
    for together, alone in both_ways(model, prompts, steps, np.random.default_rng(seed)):
        for one, other in zip(together, alone):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("threads", [1, 2])
@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(0, 300), min_size=1, max_size=MOST_TOKENS + 4), st.integers(0, 2**31))
def test_texts_of_any_length(demo_folder, threads, lengths, seed):
    """More than MOST_TOKENS, too; empty texts; caches that grow in the middle of it."""
    rng = np.random.default_rng(seed)
    model, _ = open_model(demo_folder, threads=threads)
    same(model, [rng.integers(3, 1500, length) for length in lengths], 3, seed)


FORMS = {
    "3 bits": QuantizeSettings(bits=3, method="rtn"),
    "trellis": QuantizeSettings(bits=2, format="trellis"),
    "outliers": QuantizeSettings(bits=4, method="rtn", outliers=0.01),
    "low rank": QuantizeSettings(bits=4, method="athena", rank=2),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_weights(tmp_path, form):
    model, why = open_model(write_tiny(tmp_path / "model", {}, FORMS[form]))
    if why or not model._program.takes_apart:
        pytest.fail(f"{form}: {why or 'steps one by one'}")
    same(model, [[5, 6, 7], [8] * 40, []])


def test_what_cannot_be_computed_together_goes_one_by_one(tmp_path):
    razored = QuantizeSettings(method="qrazor", bits=4, razor=RazorSettings(activation_bits=4, kv=4))
    model, _ = open_model(write_tiny(tmp_path / "razored", {}, razored))
    assert not model._program.takes_apart
    for together, alone in both_ways(model, [[5, 6], [9]], 3, np.random.default_rng(1)):
        np.testing.assert_array_equal(together, alone)


def test_the_interpreter_steps_too(demo_folder):
    model, _ = open_model(demo_folder, "float32")
    for together, alone in both_ways(model, [[5, 6], [9] * 20], 2, np.random.default_rng(2)):
        np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("key, value", [(20, 0), (0, 20), (20, 20)])
def test_numbers_beyond_float16(tmp_path, key, value):
    """The first text fits float16; the second makes all caches float32 in the middle of a step."""
    model, _ = open_model(write_tiny(tmp_path / "huge", huge(key, value)))
    same(model, [[5, 6, 7], [9] * 33, []])
    fresh, _ = open_model(write_tiny(tmp_path / "fresh", huge(key, value)))
    same(fresh, [[], []], 3)  # nothing is known to be too wide yet


def test_one_texts_failure_is_its_own(demo_folder):
    model, _ = open_model(demo_folder)
    texts, twins = ([model.new_state() for _ in range(3)] for _ in range(2))
    for state in (*texts, *twins):
        model.forward(state, [5, 6, 7])
    first, second, third = model.step(texts, [8, model.vocab_size, 9])
    assert isinstance(second, InputError) and [text.length for text in texts] == [4, 3, 4]
    np.testing.assert_array_equal(first, model.forward(twins[0], [8])[-1])
    np.testing.assert_array_equal(third, model.forward(twins[2], [9])[-1])
    assert all(isinstance(error, InputError) for error in model.step(texts, [-1, -1, 1 << 40]))


def test_a_text_whose_logits_are_no_numbers_stays_as_long_as_it_was(tmp_path):
    """Token 100's embedding is beyond what the model can carry, and no other's."""

    def burst(scale):
        scale = scale.copy()
        scale[100] = 3e38  # times a level: infinite
        return scale

    model, _ = open_model(write_tiny(tmp_path / "burst", {"embed_tokens": burst}))
    state, other = model.new_state(), model.new_state()
    with pytest.raises(NotFiniteError):
        model.forward(model.new_state(), [100])
    found = model.step([state, other], [100, 5])
    assert isinstance(found[0], NotFiniteError) and state.length == 0 and other.length == 1
    np.testing.assert_array_equal(found[1], model.forward(model.new_state(), [5])[-1])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "model"
    return open_model(write_tiny(folder, {}, QuantizeSettings(bits=4, method="rtn")))[0]


def runs_both_ways(model, prompts, runs):
    """Logits of runs of tokens behind these prompts: computed together, and token by token."""
    texts, twins = ([model.new_state() for _ in prompts] for _ in range(2))
    for state, prompt in zip((*texts, *twins), (*prompts, *prompts)):
        if len(prompt):
            model.forward(state, prompt, last_only=True)
    together = model.advance(texts, runs)
    alone = [[model.forward(twin, [token], last_only=True)[-1] for token in run] for twin, run in zip(twins, runs)]
    assert [text.length for text in texts] == [twin.length for twin in twins]
    return together, alone, texts, twins


@settings(max_examples=10, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(1, MOST_TOKENS)), min_size=1, max_size=5),
    st.integers(0, 2**31),
)  # fmt: skip
@example([(250, 16)], 0)  # over the end of a cache
@example([(0, 8), (7, 8), (30, 1)], 1)
def test_runs_of_texts_are_their_tokens_one_by_one(tiny, shapes, seed):
    """Also once some of the tokens are taken back, as those of a wrong guess are."""
    rng, model = np.random.default_rng(seed), tiny
    prompts, runs = ([rng.integers(3, 1500, shape[i]).tolist() for shape in shapes] for i in range(2))
    together, alone, texts, twins = runs_both_ways(model, prompts, runs)
    for one, other in zip(together, alone):
        np.testing.assert_array_equal(one, other)
    for text, twin, run in zip(texts, twins, runs):
        kept = text.length - int(rng.integers(0, len(run)))
        model.rewind(text, kept)
        model.rewind(twin, kept)
        (found,) = model.advance([text], [[9, 10]])
        np.testing.assert_array_equal(found, [model.forward(twin, [token])[-1] for token in (9, 10)])


def test_runs_beyond_float16(tmp_path):
    model, _ = open_model(write_tiny(tmp_path / "huge", huge(20, 20)))
    together, alone, _, _ = runs_both_ways(model, [[5, 6, 7], []], [[8, 9, 10, 11], [12, 13]])
    for one, other in zip(together, alone):
        np.testing.assert_array_equal(one, other)


def test_a_run_ends_where_a_token_fails(tiny):
    model = tiny
    first, second = model.new_state(), model.new_state()
    rows, others = model.advance([first, second], [[5, model.vocab_size, 6], [7, 8]])
    assert len(rows) == 2 and isinstance(rows[1], InputError) and first.length == 1
    assert len(others) == 2 and second.length == 2
    (rows,) = model.advance([first], [[-1, 5]])
    assert len(rows) == 1 and isinstance(rows[0], InputError) and first.length == 1
