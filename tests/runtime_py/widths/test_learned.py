"""The learned scheduler: its file, what it reads of a cache, and answers that go to fewer bits where it says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.contract.errors import InputError
from export.files.tensor_file import read_tensors, write_tensors
from runtime_py.engine.plan.values import AttentionShape
from runtime_py.engine.state import EngineState
from runtime_py.load import open_model
from runtime_py.widths.features import prompt_features
from runtime_py.widths.learned import FILE, LEARNED, NEVER, Classifier, Switch, read_switch, write_switch
from tests.runtime_py.tiny import write_tiny
from toolchain.settings.quantize import QuantizeSettings

NESTED = QuantizeSettings(bits=4, nested=2, rows_per_codebook=8)
STEPS = (0, 2, 4, NEVER)


def a_switch(width: int, seed: int = 0, **changes) -> Switch:
    rng = np.random.default_rng(seed)
    shapes = Classifier.shapes(3, width, 8, len(STEPS))
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return replace(Switch(4, 2, STEPS, 1, 0.5, Classifier(**arrays)), **changes)


def always(width: int, number: int) -> Switch:
    """One that says the same class to every prompt."""
    classifier = a_switch(width).classifier
    bias = np.full(len(STEPS), -1000, np.float32)
    bias[number] = 1000
    return a_switch(width, classifier=replace(classifier, output=classifier.output * 0, output_bias=bias))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("learned") / "nested", {}, NESTED)


@pytest.fixture(scope="module")
def width(folder) -> int:
    return open_model(folder)[0].attention[1].head_dim


def test_a_file_is_read_as_it_was_written(tmp_path):
    written = a_switch(16, confidence=0.25)
    write_switch(tmp_path, written)
    found = read_switch(tmp_path)
    assert (found.wide, found.narrow, found.steps, found.layer, found.confidence) == (4, 2, STEPS, 1, 0.25)
    for name, array in vars(written.classifier).items():
        np.testing.assert_array_equal(vars(found.classifier)[name], array)


@pytest.mark.parametrize(
    "name, value",
    [
        ("widths", np.array([2, 4])),
        ("widths", np.array([9, 2])),
        ("widths", np.array([4, 2], np.float32)),
        ("widths", np.array([4])),
        ("steps", np.array([0, 4, 2, NEVER])),
        ("steps", np.array([-1, 2, 4, NEVER])),
        ("steps", np.array([0, 2, 4, 2**40])),
        ("steps", np.array([0, 2, NEVER])),
        ("steps", np.zeros(0, np.int64)),
        ("steps", np.arange(17)),
        ("layer", np.array([-1])),
        ("layer", np.array([[1]])),
        ("confidence", np.array([np.nan], np.float32)),
        ("confidence", np.array([2], np.float32)),
        ("queries", np.zeros((3, 5), np.float32)),
        ("queries", np.zeros((0, 16), np.float32)),
        ("norm", np.zeros((2, 96), np.float64)),
        ("hidden", np.full((8, 96), np.inf, np.float32)),
        ("hidden_bias", None),
        ("output", np.zeros((4, 9), np.float32)),
        ("output_bias", np.zeros((4, 1), np.float32)),
    ],
)
def test_a_malformed_file_is_refused(tmp_path, name, value):
    write_switch(tmp_path, a_switch(16))
    tensors = {**read_tensors(tmp_path / FILE, 1 << 20, tmp_path)}
    del tensors[name]
    if value is not None:
        tensors[name] = value
    write_tensors(tmp_path / FILE, tensors)
    with pytest.raises(InputError, match=FILE):
        read_switch(tmp_path)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=400), st.integers(0, 4000))
def test_any_bytes_are_a_switch_or_refused(tmp_path_factory, data, place):
    folder = tmp_path_factory.mktemp("bytes")
    write_switch(folder, a_switch(4))
    whole = (folder / FILE).read_bytes()
    place = min(place, len(whole))
    (folder / FILE).write_bytes(whole[:place] + data + whole[place + len(data) :])
    try:
        read_switch(folder)
    except InputError as error:
        assert "\n" not in str(error)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.sampled_from([2, 4]), st.sampled_from([2, 4]), st.integers(1, 3), st.integers(4, 20))
def test_features_are_the_means_over_heads(tokens, key_item, value_item, heads, dim):
    """Against loops over a cache that is filled as kernels/attention/attend.py says that it lies."""
    rng, padded = np.random.default_rng(tokens), -(-dim // 16) * 16
    kinds = {2: np.float16, 4: np.float32}
    keys = rng.standard_normal((heads, 64, dim)).astype(np.float16).astype(np.float32)
    values = rng.standard_normal((heads, 64, dim)).astype(np.float16).astype(np.float32)
    stored_keys = np.zeros((heads, 4, 17 * dim), kinds[key_item])  # with a mean behind every block
    stored_values = np.zeros((heads, 64, padded), kinds[value_item])
    for head in range(heads):
        for token in range(64):
            stored_values[head, token, :dim] = values[head, token]
            for i in range(dim):
                stored_keys[head, token // 16, i * 16 + token % 16] = keys[head, token, i]
    arrays = [a.reshape(heads, 4, -1).view(np.uint8) for a in (stored_keys, stored_values)]
    state = EngineState(64, 64, [arrays[0]], [arrays[1]], ((key_item, value_item),))
    shape = AttentionShape("a", heads, heads, dim, 0, 0, paged=True)
    found = prompt_features(state, shape, 0, tokens)
    np.testing.assert_allclose(found[0], keys[:, :tokens].mean(axis=0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found[1], values[:, :tokens].mean(axis=0), rtol=1e-6, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.01, 1.0), min_size=4, max_size=4), st.floats(0.0, 1.0))
def test_a_step_is_the_first_that_is_late_enough(weights, confidence):
    chances = np.array(weights) / sum(weights)
    classifier = a_switch(8).classifier
    one = replace(classifier, output=classifier.output * 0, output_bias=np.log(chances).astype(np.float32))
    found = a_switch(8, classifier=one, confidence=confidence).step(np.ones((3, 8)), np.ones((3, 8)))
    late = next((i for i in range(4) if chances[: i + 1].sum() >= confidence + 1e-6), 3)
    early = next((i for i in range(4) if chances[: i + 1].sum() >= confidence - 1e-6), 3)
    assert found in (STEPS[late], STEPS[early])


@pytest.mark.filterwarnings("error")
def test_numbers_too_large_to_multiply_stay_wide():
    one = a_switch(8).classifier
    huge = replace(one, **{name: np.full_like(array, 3e38) for name, array in vars(one).items()})
    keys = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    assert a_switch(8, classifier=huge, confidence=1.0).step(keys * 1e30, keys) == NEVER


@pytest.mark.parametrize("number", range(4))
def test_an_answer_narrows_where_the_classifier_says(folder, width, number):
    """To the bit: engines of both widths, called by hand; taken back, beside another text, and begun anew."""
    write_switch(folder, always(width, number))
    scheduled, _ = open_model(folder, bits=LEARNED, threads=1)
    engines = {bits: open_model(folder, bits=bits, threads=1)[0] for bits in (2, 4)}
    ids = np.arange(20) * 7 % 900
    state, other, found, expected = scheduled.new_state(), engines[4].new_state(), [], []
    scheduled.forward(state, ids[:12])
    engines[4].forward(other, ids[:12])
    for step, token in enumerate(ids[12:]):
        bits = 2 if step >= STEPS[number] else 4
        assert scheduled.width_of(state) == bits
        found.append(scheduled.forward(state, [token]))
        expected.append(engines[bits].forward(other, [token]))
    np.testing.assert_array_equal(np.concatenate(found), np.concatenate(expected))
    scheduled.rewind(state, 15)
    fresh = scheduled.new_state()
    scheduled.forward(fresh, ids[:12])
    rows = scheduled.step([state, fresh], [ids[15], ids[12]])
    np.testing.assert_array_equal(rows[0], expected[3][0])
    np.testing.assert_array_equal(rows[1], expected[0][0])


def test_another_prompt_is_another_question(folder, width):
    """Behind a prompt that is taken back, the classifier reads the new one: as a state that never held the first."""
    switch = a_switch(width, 1)
    write_switch(folder, switch)
    scheduled, _ = open_model(folder, bits=LEARNED, threads=1)
    asked = []
    prompts = [np.random.default_rng(seed).integers(0, 900, 24) for seed in range(12)]
    reused = scheduled.new_state()
    for prompt in prompts:
        scheduled.rewind(reused, 0)
        steps = []
        for state in (reused, scheduled.new_state()):
            scheduled.forward(state, prompt)
            scheduled.width_of(state)
            shape = scheduled.engine_of(4).attention[1]
            assert state.narrow_from == switch.step(*prompt_features(state, shape, 1, 24))
            steps.append(state.narrow_from)
        assert steps[0] == steps[1]
        asked.append(steps[0])
    assert len(set(asked)) > 1


def test_what_does_not_fit_is_refused(folder, width, tmp_path):
    write_switch(folder, a_switch(width + 1))
    with pytest.raises(InputError, match="learned on another model"):
        open_model(folder, bits=LEARNED)
    write_switch(folder, a_switch(width, layer=99))
    with pytest.raises(InputError, match="learned on another model"):
        open_model(folder, bits=LEARNED)
    write_switch(folder, a_switch(width))
    with pytest.raises(InputError, match="--cache-bits 16"):
        open_model(folder, bits=LEARNED, cache_bits=8)
    write_switch(folder, a_switch(width, wide=8))
    with pytest.raises(InputError, match="8 bits are not among"):
        open_model(folder, bits=LEARNED)
    (folder / FILE).unlink()
    with pytest.raises(InputError, match="`athena-export schedule` makes it"):
        open_model(folder, bits=LEARNED)
    with pytest.raises(InputError, match="a width, a schedule"):
        open_model(folder, bits="0=4")
