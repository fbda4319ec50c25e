"""Single tokens of several texts where models have recurrent states or experts: each as it is alone, to the bit."""

from __future__ import annotations

import numpy as np
import pytest

from export.contract.errors import InputError, NotFiniteError
from runtime_py.engine.layout.products import MOST_TOKENS
from runtime_py.load import open_model
from runtime_py.reference.recurrent import EVERY
from tests.conftest import _checkpoint, _package
from tests.export.graph.families import random_text, tiny_model
from tests.runtime_py.engine.test_apart import both_ways, same

STATES = (
    "lfm2", "qwen3_5_text", "mamba2", "falcon_h1", "granitemoehybrid", "nemotron_h", "lfm2_moe", "qwen3_5_moe_text",
)  # fmt: skip
EXPERTS = ("qwen3_moe", "olmoe", "mixtral", "gpt_oss")
QUICK = ("lfm2", "qwen3_5_text", "falcon_h1", "qwen3_moe", "lfm2_moe")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made: dict[str, object] = {}

    def make(family: str):  # type: ignore[no-untyped-def]
        if family not in made:
            work = tmp_path_factory.mktemp(family)
            tiny_model(family, work / "source")
            text = random_text(work / "text.txt")
            chosen = {"sequences": 2, "sequence_length": 32, "passes": 1, "bits": 4}
            made[family] = _package(_checkpoint(work / "source", str(text), None, work / "q", **chosen), work / "model")
        return made[family]

    return make


@pytest.mark.parametrize(
    "family", [f if f in QUICK else pytest.param(f, marks=pytest.mark.long) for f in (*STATES, *EXPERTS)]
)
def test_every_text_is_as_it_is_alone(family, folders):
    model, why = open_model(folders(family))
    assert not why
    rng = np.random.default_rng(0)
    same(model, [rng.integers(3, 90, length) for length in (7, 0, 40, 1)], 4)
    assert (model.most_together == 1) == (family in STATES)


def test_more_texts_than_pass_together(folders):
    model, _ = open_model(folders("lfm2"), threads=2)
    same(model, [[5, 6]] * (MOST_TOKENS + 3), 2)


def test_runs_of_texts_with_states_go_one_by_one(folders):
    model, _ = open_model(folders("qwen3_5_text"))
    text, twin = model.new_state(), model.new_state()
    other = model.new_state()
    rows, others = model.advance([text, other], [[5, 6, 7], [8]])
    for token, row in zip([5, 6, 7], rows):
        np.testing.assert_array_equal(row, model.forward(twin, [token])[0])
    assert text.length == 3 and other.length == 1 and len(others) == 1


def test_states_go_on_alone_and_come_back(folders):
    """Steps together, then alone, then together again; and a text that is cut back to a copy of its states."""
    model, _ = open_model(folders("falcon_h1"))
    texts, twins = ([model.new_state() for _ in range(2)] for _ in range(2))
    for state in (*texts, *twins):
        model.forward(state, [5, 6, 7])
    for turn in range(3):
        for together, twin, token in zip(model.step(texts, [8, 9]), twins, [8, 9]):
            np.testing.assert_array_equal(together, model.forward(twin, [token])[-1])
        for text, twin in zip(texts, twins):
            np.testing.assert_array_equal(model.forward(text, [10 + turn]), model.forward(twin, [10 + turn]))
    for state in (*texts, *twins):
        assert model.rewind(state, 5) == 3  # where the prompt ended
    for together, twin in zip(model.step(texts, [11, 11]), twins):
        np.testing.assert_array_equal(together, model.forward(twin, [11])[-1])


def test_copies_are_kept_at_the_same_places(folders):
    model, _ = open_model(folders("lfm2"))
    texts = [model.new_state() for _ in range(2)]
    twin = model.new_state()
    prompt = np.arange(EVERY - 2) % 80 + 3
    for state in (*texts, twin):
        model.forward(state, prompt)
    for token in (5, 6, 7):
        model.step(texts, [token, token])
        model.forward(twin, [token])
    assert [*texts[0].recurrent.copies()] == [*twin.recurrent.copies()] == [EVERY - 2, EVERY]
    for one, other in zip(texts[1].recurrent.copies()[EVERY], twin.recurrent.copies()[EVERY]):
        np.testing.assert_array_equal(one, other)


def test_one_texts_failure_leaves_its_states(folders):
    model, _ = open_model(folders("lfm2"))
    good, bad, twin = (model.new_state() for _ in range(3))
    for state in (good, bad, twin):
        model.forward(state, [5, 6, 7])
    first, second = model.step([good, bad], [8, model.vocab_size])
    assert isinstance(second, InputError) and bad.length == 3
    np.testing.assert_array_equal(first, model.forward(twin, [8])[-1])
    # A state of numbers beyond float32 makes no logits, and stays as it was.
    before = [array.copy() for array in bad.recurrent.arrays]
    bad.recurrent.arrays[0][...] = np.inf
    first, second = model.step([good, bad], [9, 9])
    assert isinstance(second, NotFiniteError) and bad.length == 3 and np.isinf(bad.recurrent.arrays[0]).all()
    np.testing.assert_array_equal(first, model.forward(twin, [9])[-1])
    for array, saved in zip(bad.recurrent.arrays, before):
        array[...] = saved
    for together, alone in both_ways(model, [[5], [6]], 1, np.random.default_rng(0)):
        np.testing.assert_array_equal(together, alone)
