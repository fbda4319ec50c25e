"""Answers with guesses are those without: every family, sampling, penalties, grammars, log probabilities, stops."""

from __future__ import annotations

import json
import threading
from dataclasses import replace

import numpy as np
import pytest

from export.contract.errors import NotFiniteError
from runtime_py.load import open_model
from runtime_py.serving.scheduler import Finished, Scheduler
from runtime_py.serving.settings import ServeSettings
from runtime_py.speculation.lookup import Lookup
from runtime_py.speculation.proposer import Guess
from runtime_py.speculation.speculation import Speculation
from runtime_py.structured import forms
from runtime_py.structured.compiler import Compiler
from runtime_py.text.generation import Generation, GenerationRequest, Piece
from runtime_py.text.generator import TextGenerator, load_tokenizer
from runtime_py.text.logit_processors import LogitRules
from runtime_py.text.sampling import SamplingSettings
from tests.conftest import _checkpoint, _package
from tests.export.graph.families import INTERPRETED, TINY, random_text, tiny_model
from tests.runtime_py.engine.test_range import huge
from tests.runtime_py.tiny import write_tiny
from toolchain.settings.quantize import QuantizeSettings

FOUR_BITS = QuantizeSettings(bits=4, method="rtn", scale_bits=16)
RECURRENT = (
    "lfm2",
    "qwen3_5_text",
    "qwen3_5_moe_text",
    "lfm2_moe",
    "mamba2",
    "granitemoehybrid",
    "nemotron_h",
    "falcon_h1",
)


class Told:
    """Guesses the tokens that will come, every fifth of them wrong, and then others to no end."""

    def __init__(self, known, vocabulary):
        self._known, self._vocabulary, self.calls = known, vocabulary, 0

    def propose(self, tokens, most):
        self.calls += 1
        found = list(self._known[len(tokens) : len(tokens) + most])
        for i in range(self.calls % 5, len(found), 5):
            found[i] = (found[i] + 1) % self._vocabulary
        return Guess([*found, *[3] * (most - len(found))], 20)


def finish(generation):
    pieces = []
    while not generation.finish_reason:
        pieces += generation.pieces()
    text = "".join(piece.text for piece in pieces) + generation.tail
    assert [piece.token for piece in pieces] == generation.tokens
    return pieces, text, generation.finish_reason


def both(runner, tokenizer, request, asked="auto", proposer=None):
    """A plain answer and one with guesses, which are those to come unless a proposer is given; and what happened."""
    plain = Generation(request, runner, tokenizer, runner.new_state())
    expected = finish(plain)
    whole = [*request.prompt, *plain.tokens]
    speculation = Speculation(runner, asked, proposer or (lambda: Told(whole, runner.vocab_size)))
    other = Generation(request, runner, tokenizer, runner.new_state(), speculation=speculation)
    assert finish(other) == expected
    assert other.state.length == plain.state.length
    assert other.cached_tokens(answers=True) == plain.cached_tokens(answers=True)
    if plain.state.length:  # the cache is that of plain decoding, too
        ids = [int(request.prompt[0])]
        np.testing.assert_array_equal(runner.forward(other.state, ids), runner.forward(plain.state, ids))
    return plain, speculation.counts


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    """Of random weights, which soon repeat themselves."""
    return TextGenerator(write_tiny(tmp_path_factory.mktemp("tiny") / "model", {}, FOUR_BITS))


def ask(prompt, **more):
    given = {"sampling": SamplingSettings(), "max_tokens": 40, **more}
    return GenerationRequest(tuple(prompt), **given)


@pytest.mark.parametrize("family", [variant for variant in TINY if " " not in variant])
def test_every_family(family, tmp_path):
    tiny_model(family, tmp_path / "source")
    text = random_text(tmp_path / "text.txt")
    checkpoint = _checkpoint(tmp_path / "source", str(text), None, tmp_path / "quantized", bits=4, method="rtn")
    folder = _package(checkpoint, tmp_path / "model")
    runner, tokenizer = open_model(folder)[0], load_tokenizer(folder)
    request = ask([5, 6, 7, 8, 9], max_tokens=30)
    _, counts = both(runner, tokenizer, request, "7")
    can = runner.most_together > 1
    assert can == (counts.accepted > 0)
    assert can != (family in (*RECURRENT, *INTERPRETED))


@pytest.mark.parametrize(
    "sampling",
    [SamplingSettings(), SamplingSettings(1.0, seed=3), SamplingSettings(0.8, 40, 0.9, 11, 0.02)],
    ids=["greedy", "sampled", "all filters"],
)
@pytest.mark.parametrize("asked", ["auto", "1", "15"])
def test_however_tokens_are_drawn(generator, sampling, asked):
    prompt = generator.encode("Once upon a time there was a red ball. Once upon a time there was a")
    _, counts = both(generator.session, generator.tokenizer, ask(prompt, sampling=sampling), asked)
    assert 0 < counts.accepted < counts.guessed


def test_the_look_up(generator):
    """An answer that comes again in the prompt is guessed; sampled answers are the same, guessed or not."""
    prompt = generator.encode("The dog ran. The cat ran. The dog ran. The cat ran. The dog")
    plain = Generation(ask(prompt), generator.session, generator.tokenizer, generator.session.new_state())
    finish(plain)
    twice = [*prompt, *plain.tokens, *prompt, *plain.tokens[:3]]
    _, counts = both(generator.session, generator.tokenizer, ask(twice), "4", Lookup)
    assert counts.guessed > 0
    for seed in range(3):
        request = ask(twice, sampling=SamplingSettings(0.5, seed=seed))
        both(generator.session, generator.tokenizer, request, "4", Lookup)


def test_rules_probabilities_and_stops(generator):
    prompt = generator.encode("The dog ran to the red ball. The dog")
    rules = LogitRules(
        repetition_penalty=1.2, frequency_penalty=0.5, presence_penalty=0.3, no_repeat_ngram_size=3, min_tokens=9
    )
    base = ask(prompt, sampling=SamplingSettings(0.9, seed=2), rules=rules, top_logprobs=3)
    plain, counts = both(generator.session, generator.tokenizer, base)
    assert counts.accepted > 0
    tokens = plain.tokens
    both(generator.session, generator.tokenizer, replace(base, stop_tokens=frozenset(tokens[12:13])))
    text = generator.tokenizer.decode(tokens)
    both(generator.session, generator.tokenizer, replace(base, stop_strings=(text[20:24],)))
    for most in (1, 2, 3):
        both(generator.session, generator.tokenizer, replace(base, max_tokens=most))


def test_answers_of_a_form(generator):
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "integer"}, "maxItems": 9}},
              "required": ["a"]}  # fmt: skip
    compiler = Compiler(generator.tokenizer, generator.session.vocab_size)
    try:
        made = compiler.compile(forms.schema(schema, "schema"))
    finally:
        compiler.close()
    request = ask(generator.encode("Numbers:"), constraint=made.constraint, sampling=SamplingSettings(1.0, seed=4))
    plain, counts = both(generator.session, generator.tokenizer, request)
    assert counts.accepted > 0
    if plain.finish_reason == "stop":
        assert "a" in json.loads(generator.tokenizer.decode(plain.tokens))


def test_numbers_beyond_float16(tmp_path):
    model, _ = open_model(write_tiny(tmp_path / "huge", huge(20, 20), FOUR_BITS))
    tokenizer = TextGenerator(tmp_path / "huge").tokenizer
    both(model, tokenizer, ask([5, 6, 7], max_tokens=20))


def test_a_guess_that_makes_no_numbers_harms_nothing(tmp_path):
    def burst(scale):
        scale = scale.copy()
        scale[100] = 3e38
        return scale

    model, _ = open_model(write_tiny(tmp_path / "burst", {"embed_tokens": burst}, FOUR_BITS))
    tokenizer = TextGenerator(tmp_path / "burst").tokenizer

    class Bad:
        def propose(self, tokens, most):
            return Guess(([100] * most)[:most], 32)

    request = ask([5, 6, 7], rules=LogitRules(suppress_tokens=(100,)), max_tokens=12)
    _, counts = both(model, tokenizer, request, "3", Bad)
    assert counts.guessed > counts.accepted == 0
    told = ask([5, 6, 7], rules=LogitRules(logit_bias=((100, 100.0),)), max_tokens=12)
    for speculation in (None, Speculation(model, "3", Bad)):
        generation = Generation(told, model, tokenizer, model.new_state(), speculation=speculation)
        with pytest.raises(NotFiniteError):
            finish(generation)
        assert generation.tokens == [100]


def answers(generator, requests, **settings):
    found, ends, done = [[] for _ in requests], [None] * len(requests), threading.Event()

    def listen(number, event):
        if isinstance(event, Piece):
            found[number].append((event.token, event.text))
        else:
            ends[number] = event
            if all(ends):
                done.set()

    scheduler = Scheduler(generator.session, generator.tokenizer, ServeSettings(**settings))
    try:
        scheduler.submit(requests, listen, 60.0)
        assert done.wait(120)
        return found, ends, scheduler.speculation.counts
    finally:
        scheduler.close()


def test_requests_beside_each_other(generator):
    texts = ("The dog ran. The cat ran. The dog ran. The", "a b c d a b c d a b", "Once upon a time")
    requests = [
        ask(generator.encode(text), max_tokens=60, sampling=SamplingSettings(0.7 * (i % 2), seed=i))
        for i, text in enumerate(texts)
    ]
    plain, ends, counts = answers(generator, requests, speculate="off", sessions=3)
    assert not counts.guessed and all(isinstance(end, Finished) for end in ends)
    for asked in ("auto", "3"):
        found, again, counts = answers(generator, requests, speculate=asked, sessions=3)
        assert (found, again) == (plain, ends)
        assert asked == "auto" or 0 < counts.accepted <= counts.guessed
