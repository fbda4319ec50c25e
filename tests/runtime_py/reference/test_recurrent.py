"""Recurrent states: cut back, taken up again by requests that share a prefix, never those of another place."""

from __future__ import annotations

import queue
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.graph.archs import model_spec
from runtime_py.load import open_model
from runtime_py.reference.recurrent import EVERY, Recurrent
from runtime_py.serving.scheduler import Failed, Finished, Scheduler
from runtime_py.serving.settings import ServeSettings
from runtime_py.text.generation import Generation, GenerationRequest
from runtime_py.text.generator import load_tokenizer
from runtime_py.text.sampling import SamplingSettings
from tests.export.graph.families import COMMON, TINY
from tests.runtime_py.tiny import write_tiny
from toolchain.source.config import resolved_config

LFM2 = {"model_type": "lfm2", "num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"],
        "block_auto_adjust_ff_dim": False, "conv_L_cache": 4}  # fmt: skip
TEXT = np.random.default_rng(0).integers(3, 1500, 1000)
STATEFUL = [
    "mamba2", "nemotron_h", "falcon_h1", "granitemoehybrid", "qwen3_5_text", "qwen3_5_moe_text", "lfm2", "lfm2_moe"
]  # fmt: skip


@pytest.fixture(scope="module", params=["int8", "float32"])
def runner(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recurrent") / "model"
    found, why = open_model(write_tiny(folder, {}, **LFM2), request.param)
    assert request.param == "float32" or why == ""
    found.tokenizer = load_tokenizer(folder.with_name("model-source"))
    return found


@settings(max_examples=200)
@given(st.lists(st.one_of(st.tuples(st.just("add"), st.integers(1, 400)), st.tuples(st.just("cut"), st.floats(0, 1)))))
def test_a_state_is_always_that_of_its_length(steps):
    """The state here is the length itself: whatever is added and cut, they stay equal."""
    state = Recurrent([np.zeros(1)])
    for what, size in steps:
        if what == "cut":
            wanted = int(size * state.length)
            assert state.cut(wanted) <= wanted
        else:
            state.arrays[0] += size
            state.length += size
            if size > 1:
                state.keep()
        assert state.arrays[0] == state.length
        state.check(state.length)


def test_the_last_prompts_and_far_places_are_kept():
    state = Recurrent([np.zeros(1)])
    for _ in range(200):
        state.length += 10
        state.keep()
    assert state.bytes() <= 8 * (1 + 2000 // EVERY + 4)
    assert [state.cut(length) for length in (1995, 1985, 1979)] == [1990, 1980, 1970]
    assert state.cut(1000) > 1000 - 2 * EVERY


@pytest.mark.parametrize("copies", [1, 2, 5, 12])
def test_large_states_have_few_copies(copies, monkeypatch):
    """However long the text, copies take no more than their limit; far ones stay spread over it."""
    state = Recurrent([np.zeros(100)])
    monkeypatch.setattr("runtime_py.reference.recurrent.MOST_BYTES", 800 * copies)
    for number in range(100):
        state.length += EVERY + number % 3
        state.arrays[0][:] = state.length
        state.keep()
        assert state.bytes() <= 800 * (copies + 1)
    last = state.length
    assert state.cut(last + 1) == last
    for wanted in (last - 1, last // 2, last // 4):
        found = Recurrent(state.saved(), state.length, dict(state._kept)).cut(wanted)
        assert found <= wanted and (copies < 12 or wanted - found <= last / 3)
    assert state.cut(EVERY - 1) == 0 and (state.arrays[0] == 0).all()


def test_a_copy_that_is_too_large_alone_is_there(monkeypatch):
    state = Recurrent([np.zeros(100)])
    monkeypatch.setattr("runtime_py.reference.recurrent.MOST_BYTES", 10)
    for length in (5, 300):
        state.length = length
        state.keep()
    state.length = 301
    assert state.cut(300) == 300


def test_another_place_than_the_state_s_is_an_error(runner):
    state = runner.new_state()
    runner.forward(state, TEXT[:9])
    state.length = 5
    with pytest.raises(RuntimeError, match="states of 9 tokens cannot go on behind 5"):
        runner.forward(state, TEXT[:3])


@pytest.mark.parametrize("kept", [0, 1, 5, 8, 9, 299, 300, 301, 305])
def test_after_a_cut_the_logits_are_those_of_a_fresh_run(runner, kept):
    """Cut into a prompt, at its end, into what was decoded; then another text."""
    state, other = runner.new_state(), TEXT[500:520]
    for a, b in ((0, 9), (9, 265), (265, 300), *((i, i + 1) for i in range(300, 305))):
        runner.forward(state, TEXT[a:b])
    found = runner.rewind(state, kept)
    assert found == state.length <= kept and (kept in (0, 300, 305)) <= (found == kept)
    again = np.concatenate([TEXT[found:kept], other])
    fresh = np.concatenate([TEXT[:kept], other])
    expected = runner.forward(runner.new_state(), fresh)[-20:]
    np.testing.assert_allclose(runner.forward(state, again)[-20:], expected, atol=1e-3 * np.abs(expected).max())


def answer(runner, prompt, state, reused=0) -> tuple[list[int], int]:
    request = GenerationRequest(prompt=tuple(prompt), sampling=SamplingSettings(), max_tokens=12)
    generation = Generation(request, runner, runner.tokenizer, state, reused)
    while not generation.finish_reason:
        generation.step()
    return generation.tokens, generation.reused


def prompts() -> list[list[int]]:
    """Growing conversations, cut ones, and one that was there before."""
    ends = (40, 70, 55, 300, 600, 310, 600, 71)
    return [[int(t) for t in (*TEXT[:end], *TEXT[700 + i : 705 + i])] for i, end in enumerate(ends)]


def test_answers_of_a_server_are_those_of_a_fresh_run(runner):
    """One session serves all: every request starts from what the one before left, as far as that can be taken up."""
    found, reused = served(runner, prompts())
    assert found == [answer(runner, prompt, runner.new_state())[0] for prompt in prompts()]
    assert sum(reused) > 500


@pytest.mark.long
@pytest.mark.parametrize("family", STATEFUL)
def test_every_family_with_states_answers_as_a_fresh_run(family, tmp_path):
    """The same requests to each family's engine, whose states are copied at least every EVERY tokens of a prompt."""
    sizes = {"vocab_size": 1536, "max_position_embeddings": 2048, "model_type": family}
    engine, why = open_model(write_tiny(tmp_path / "model", {}, **{**COMMON, **TINY[family], **sizes}))
    engine.tokenizer = load_tokenizer(tmp_path / "model-source")
    assert why == "" and engine.new_state().recurrent.arrays
    for ids in (TEXT[:1], TEXT[:9]):  # compiles, which takes longer than a request may
        engine.forward(engine.new_state(), ids)
    found, reused = served(engine, prompts())
    assert found == [answer(engine, prompt, engine.new_state())[0] for prompt in prompts()]
    assert sum(reused) > 500 and len({token for tokens in found for token in tokens}) > 3
    state, fresh = engine.new_state(), engine.new_state()
    engine.forward(state, TEXT[:256])
    engine.forward(state, TEXT[256:600])
    left = engine.rewind(state, 500)
    assert 0 < left <= 500 and left >= 500 - EVERY
    engine.forward(fresh, TEXT[:left])
    np.testing.assert_array_equal(engine.forward(state, TEXT[left:700]), engine.forward(fresh, TEXT[left:700]))


def test_every_family_with_states_is_tried():
    def keeps_a_state(family):
        config = {**({} if family == "gpt2" else COMMON), **TINY[family], "model_type": family}
        kinds = model_spec(resolved_config(config, Path("config.json"))).kinds()
        return any(names.convolution or names.delta_net or names.state_space for names in kinds)

    assert set(STATEFUL) == {family for family in TINY if " " not in family and keeps_a_state(family)}


def served(runner, prompts) -> tuple[list[list[int]], list[int]]:
    """Answers of one session that gets these prompts, one after another, and how many tokens of each it had already."""
    scheduler = Scheduler(runner, runner.tokenizer, ServeSettings(sessions=1))
    try:
        found, reused = [], []
        for prompt in prompts:
            events: queue.Queue = queue.Queue()
            request = GenerationRequest(prompt=tuple(prompt), sampling=SamplingSettings(), max_tokens=12)
            scheduler.submit([request], lambda number, event, events=events: events.put(event), 3600.0)
            tokens = []
            while not isinstance(event := events.get(timeout=3600), Finished):
                assert not isinstance(event, Failed), event
                tokens.append(event.token)
            found.append(tokens)
            reused.append(event.reused)
    finally:
        scheduler.close()
    return found, reused


def test_only_what_a_cut_leaves_is_taken_up(runner):
    state = runner.new_state()
    prompt = [int(token) for token in TEXT[:50]]
    first, _ = answer(runner, prompt, state)
    again, reused = answer(runner, prompt, state, 48)  # the state is that of 50 tokens and an answer
    assert again == first and reused < 48
    longer, reused = answer(runner, [*prompt, 7, 8, 9], state, 50)
    assert reused == 50 and longer == answer(runner, [*prompt, 7, 8, 9], runner.new_state())[0]
