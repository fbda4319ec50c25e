"""A request's tokens depend on the request alone: not on its neighbours, nor on what a cache already held."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from runtime_py.engine.state import chunk_size
from runtime_py.text.generation import Generation, GenerationRequest, common_prefix, reusable
from runtime_py.text.generator import TextGenerator
from runtime_py.text.sampling import SamplingSettings
from tests.runtime_py.text.small_tokenizers import small_tokenizer


@pytest.fixture(scope="module")
def generator(demo_folder):
    return TextGenerator(demo_folder)


def finish(generation: Generation) -> tuple[list[int], str]:
    pieces = []
    while not generation.finish_reason:
        piece = generation.step()
        pieces.append(piece.text if piece else "")
    return generation.tokens, "".join(pieces) + generation.tail


def request(prompt, tokens=30, seed=1, **more):
    return GenerationRequest(tuple(prompt), SamplingSettings(temperature=1.0, seed=seed), tokens, **more)


@pytest.mark.parametrize("most", [16, 64, 256])
def test_chunks_never_end_in_a_single_token(most):
    for total in [*range(2, 600), 257, 513, 769]:
        left, sizes = total, []
        while left:
            sizes.append(chunk_size(left, most))
            left -= sizes[-1]
        assert min(sizes) >= 2 and max(sizes) <= most and sum(sizes) == total


@pytest.mark.parametrize("isa", ["", "avx2", "portable"])
def test_a_prompt_computed_in_any_pieces_gives_the_same_logits(demo_folder, isa, monkeypatch):
    if isa:
        monkeypatch.setenv("ATHENA_ISA", isa)
    runner = TextGenerator(demo_folder).session
    rng = np.random.default_rng(5)
    for _ in range(10 if isa else 25):
        ids = rng.integers(0, runner.vocab_size, int(rng.integers(4, 480)))
        whole = runner.forward(runner.new_state(), ids, last_only=True)
        state = runner.new_state()
        cut = int(rng.integers(2, len(ids) - 1))
        runner.forward(state, ids[:cut], last_only=True)
        assert np.array_equal(runner.forward(state, ids[cut:], last_only=True), whole)


def test_interleaved_requests_get_what_they_get_alone(generator):
    prompts = [generator.encode(text) for text in ("Once upon a time", "The dog", "She said that the big red ball")]
    alone = [
        finish(Generation(request(p, seed=i), generator.session, generator.tokenizer, generator.session.new_state()))
        for i, p in enumerate(prompts)
    ]
    together = [
        Generation(request(p, seed=i), generator.session, generator.tokenizer, generator.session.new_state())
        for i, p in enumerate(prompts)
    ]
    texts = ["", "", ""]
    while not all(g.finish_reason for g in together):
        for i, g in enumerate(together):
            if not g.finish_reason:
                piece = g.step()
                texts[i] += (piece.text if piece else "") + g.tail
    assert [(g.tokens, text) for g, text in zip(together, texts)] == alone


def test_a_reused_prefix_changes_nothing(generator):
    ids = generator.encode("Once upon a time there was a little girl who had a red ball and a blue ball")
    alone = finish(Generation(request(ids), generator.session, generator.tokenizer, generator.session.new_state()))
    state = generator.session.new_state()
    first = Generation(request([*ids[:9], 5, 6, 7]), generator.session, generator.tokenizer, state)
    finish(first)
    cached = first.cached_tokens(answers=False)
    assert cached == [*ids[:9], 5, 6, 7]
    again = Generation(request(ids), generator.session, generator.tokenizer, state, reusable(cached, ids))
    assert again.reused == 9
    assert finish(again) == alone
    assert len(first.cached_tokens(answers=True)) > len(cached)


def test_reuse_leaves_two_tokens_and_never_goes_below_zero():
    assert reusable([1, 2, 3, 4], [1, 2, 3, 4]) == 2
    assert reusable([1, 2, 3, 4], [1]) == 0
    assert reusable([], [1, 2]) == 0
    assert common_prefix([1, 2, 3], [1, 2, 4]) == 2


def test_an_interrupted_answer_keeps_the_characters_that_were_held_back():
    tokenizer = small_tokenizer("llama")
    script = [tokenizer.token_to_id(token) for token in ("a", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>", "<0x0A>", "a")]

    class Scripted:
        def rewind(self, state, length):
            return length

        def adapt(self, state, adapter):
            assert not adapter

        def forward(self, state, tokens, last_only):
            return np.eye(tokenizer.get_vocab_size())[[script.pop(0)]]

    asked = GenerationRequest((script[0],), SamplingSettings(), 9)
    generation = Generation(asked, Scripted(), tokenizer, SimpleNamespace(length=0))
    pieces = [generation.step().text for _ in range(6)]
    assert (pieces, generation.tail) == (["a", *[""] * 5], "")
    generation.interrupt()
    assert (generation.tail, generation.finish_reason) == ("😀\n", "stop")
    generation.interrupt()
    assert generation.tail == "😀\n"


def test_log_probabilities_are_the_models_own(generator):
    ids = generator.encode("Once upon a time")
    generation = Generation(
        request(ids, 3, top_logprobs=5), generator.session, generator.tokenizer, generator.session.new_state()
    )
    piece = generation.step()
    logits = generator.session.forward(generator.session.new_state(), ids, last_only=True)[-1].astype(np.float64)
    expected = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
    assert piece.logprob == pytest.approx(expected[piece.token], abs=1e-9)
    best = np.argsort(-expected)[:5]
    assert [token for token, _ in piece.alternatives] == best.tolist()
    assert [p for _, p in piece.alternatives] == pytest.approx(expected[best].tolist(), abs=1e-9)
