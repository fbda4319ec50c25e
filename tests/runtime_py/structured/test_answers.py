"""Answers of the bundled model under schemas: every one of them is valid, however random."""

from __future__ import annotations

import json
import queue

import jsonschema
import pytest

from runtime_py.serving.scheduler import Finished, Scheduler
from runtime_py.serving.settings import ServeSettings
from runtime_py.structured import forms
from runtime_py.structured.compiler import Compiler
from runtime_py.text.generation import GenerationRequest, Piece
from runtime_py.text.generator import TextGenerator
from runtime_py.text.logit_processors import LogitRules
from runtime_py.text.sampling import SamplingSettings
from tests.runtime_py.structured.schemas import SCHEMAS

pytest.importorskip("llguidance")


@pytest.fixture(scope="module")
def generator(served_folder):
    return TextGenerator(served_folder)


@pytest.fixture(scope="module")
def compiler(generator):
    found = Compiler(generator.tokenizer, generator.session.vocab_size)
    yield found
    found.close()


def answer(generator, compiler, form, seed, temperature, **more):
    settings = SamplingSettings(temperature=temperature, seed=seed)
    constraint = compiler.compile(form).constraint
    ids = tuple(generator.encode("Once upon a time "))
    settings = {"max_tokens": 300, "stop_tokens": generator.stop, "sampling": settings, **more}
    request = GenerationRequest(prompt=ids, constraint=constraint, **settings)
    return "".join(text for _, text in generator.answer(request))


def check(generator, compiler, count):
    for name, schema in SCHEMAS.items():
        form, validator = forms.schema(schema, name), jsonschema.Draft202012Validator(schema)
        for seed in range(count):
            text = answer(generator, compiler, form, seed, (1.5, 1.0, 0.0)[seed % 3])
            validator.validate(json.loads(text))


def test_forty_answers_over_twenty_schemas_are_valid(generator, compiler):
    assert len(SCHEMAS) == 20
    check(generator, compiler, 2)


@pytest.mark.long
def test_five_hundred_answers_over_twenty_schemas_are_valid(generator, compiler):
    check(generator, compiler, 25)


def check_together(generator, compiler, count):
    """As check(), eight answers at a time, with guessed tokens: each text that of its request alone."""
    scheduler = Scheduler(generator.session, generator.tokenizer, ServeSettings(sessions=8, queue=600, speculate="3"))
    ids, ends = tuple(generator.encode("Once upon a time ")), queue.Queue()
    texts: dict[tuple[str, int], str] = {}
    try:
        for name, schema in SCHEMAS.items():
            constraint = compiler.compile(forms.schema(schema, name)).constraint
            for seed in range(count):
                key = (name, seed)
                texts[key] = ""

                def listen(index, event, key=key):
                    texts[key] += event.tail if isinstance(event, Finished) else getattr(event, "text", "")
                    if not isinstance(event, Piece):
                        ends.put(event)

                settings = SamplingSettings(temperature=(1.5, 1.0, 0.0)[seed % 3], seed=seed)
                request = GenerationRequest(
                    ids, settings, 300, stop_tokens=generator.stop, constraint=constraint
                )  # fmt: skip
                scheduler.submit([request], listen, 3600)
        for _ in texts:
            assert isinstance(ends.get(timeout=600), Finished)
        counts = scheduler.speculation.counts
    finally:
        scheduler.close()
    assert counts.guessed > 0, "nothing was guessed"
    for (name, _), text in texts.items():
        jsonschema.Draft202012Validator(SCHEMAS[name]).validate(json.loads(text))
    name = next(iter(SCHEMAS))
    alone = answer(generator, compiler, forms.schema(SCHEMAS[name], name), 0, 1.5)
    assert texts[name, 0] == alone


def test_answers_beside_others_and_guessed_ahead_are_valid(generator, compiler):
    check_together(generator, compiler, 1)


@pytest.mark.long
def test_five_hundred_answers_beside_others_and_guessed_ahead_are_valid(generator, compiler):
    check_together(generator, compiler, 25)


def test_rules_and_stop_tokens_do_not_break_a_form(generator, compiler):
    """Penalties, forbidden tokens, a minimum length, tokens that end an answer: the form holds through all of them."""
    schema = SCHEMAS["a record"]
    form = forms.schema(schema, "schema")
    rules = LogitRules(repetition_penalty=1.8, frequency_penalty=2.0, min_tokens=100, suppress_tokens=(9, 10, 11))
    for stops in (frozenset(), generator.stop, frozenset([5, 6, 7]) | generator.stop):
        text = answer(generator, compiler, form, 3, 1.5, rules=rules, stop_tokens=stops)
        jsonschema.validate(json.loads(text), schema)


def test_an_answer_ends_with_its_form_also_without_a_stop_token(generator, compiler):
    text = answer(generator, compiler, forms.choices(["yes"], "choice"), 0, 1.0, stop_tokens=frozenset())
    assert text == "yes"
