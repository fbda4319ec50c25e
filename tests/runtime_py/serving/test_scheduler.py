"""Turns: tokens of all running requests together, prompts chunk by chunk, and failures that stay where they are."""

from __future__ import annotations

import threading

import pytest

from runtime_py.prompt_cache.store import PromptCache
from runtime_py.serving.scheduler import Failed, Finished, Scheduler
from runtime_py.serving.settings import ServeSettings
from runtime_py.text.generation import GenerationRequest, Piece
from runtime_py.text.generator import TextGenerator
from runtime_py.text.sampling import SamplingSettings

PROMPTS = [(5, 6, 7), (9, 8), (11, 12, 13, 14)]


@pytest.fixture(scope="module")
def generator(served_folder):
    return TextGenerator(served_folder)


class Runner:
    """The generator's own; more than one text at a time fails, and everything of the texts in `broken`."""

    def __init__(self, inner):
        self._inner, self.broken, self.together = inner, [], 0

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def advance(self, states, runs):
        self.together = max(self.together, len(states))
        raise MemoryError

    def forward(self, state, tokens, last_only=False):
        if any(state is one for one in self.broken) and len(tokens) == 1:
            raise MemoryError
        return self._inner.forward(state, tokens, last_only)


def answers(scheduler, prompts, count=12, tenant=None):
    """(tokens, end) of each prompt, and the numbers of the prompts in the order of their first tokens."""
    found, ends, order, done = [[] for _ in prompts], [None] * len(prompts), [], threading.Event()

    def listen(number, event):
        if isinstance(event, Piece):
            order.extend([number] if not found[number] else [])
            found[number].append(event.token)
        else:
            ends[number] = event
            if all(ends):
                done.set()

    requests = [GenerationRequest(prompt=p, sampling=SamplingSettings(0.0), max_tokens=count) for p in prompts]
    scheduler.submit(requests, listen, 60.0, tenant=tenant)
    assert done.wait(60)
    return found, ends, order


def scheduled(runner, generator, prompts, prepare=lambda scheduler: None, count=12):
    settings = ServeSettings(sessions=len(prompts), speculate="off")
    scheduler = Scheduler(runner, generator.tokenizer, settings)
    try:
        prepare(scheduler)
        return answers(scheduler, prompts, count)
    finally:
        scheduler.close()


def test_what_cannot_be_computed_together_is_computed_alone(generator):
    expected, ends, _ = scheduled(generator.session, generator, PROMPTS)
    assert all(isinstance(end, Finished) for end in ends)
    runner = Runner(generator.session)
    found, ends, _ = scheduled(runner, generator, PROMPTS)
    assert runner.together == len(PROMPTS) and found == expected
    assert all(isinstance(end, Finished) for end in ends)


def test_the_request_that_fails_is_the_only_one(generator):
    expected, _, _ = scheduled(generator.session, generator, PROMPTS)
    runner = Runner(generator.session)
    found, ends, _ = scheduled(
        runner, generator, PROMPTS, lambda scheduler: runner.broken.append(scheduler._free[0].state)
    )
    failed = [number for number, end in enumerate(ends) if isinstance(end, Failed)]
    assert len(failed) == 1 and "MemoryError" in ends[failed[0]].message
    assert [found[n] for n in range(3) if n not in failed] == [expected[n] for n in range(3) if n not in failed]


def test_a_long_prompt_lets_a_short_one_pass(generator):
    long = tuple(5 + i % 200 for i in range(480))  # two chunks
    _, ends, order = scheduled(generator.session, generator, [long, (5, 6, 7)])
    assert order == [1, 0] and all(isinstance(end, Finished) for end in ends)


def test_prompts_are_read_in_small_chunks_while_others_answer(generator):
    """And their answers are what they are alone."""
    long = tuple(5 + i % 200 for i in range(300))
    expected = [scheduled(generator.session, generator, [prompt])[0][0] for prompt in (long, (5, 6, 7))]

    class Watched(Runner):
        def advance(self, states, runs):
            return self._inner.advance(states, runs)

        def forward(self, state, tokens, last_only=False):
            read.append(len(tokens))
            return self._inner.forward(state, tokens, last_only)

    read = []
    assert scheduled(Watched(generator.session), generator, [long])[0] == expected[:1] and max(read) == 256
    read = []
    found, _, _ = scheduled(Watched(generator.session), generator, [(5, 6, 7), long])
    assert found == expected[::-1] and sum(read) == 303
    assert read[:2] == [3, 64]  # the rest at once, where the short answer has ended


class Logged(Runner):
    """Notes what is computed: the tokens of a prompt's chunk and whose it is, or 1 for a token of every answer."""

    def __init__(self, inner):
        super().__init__(inner)
        self.log, self.whose = [], []

    def advance(self, states, runs):
        self.log.append(1)
        return self._inner.advance(states, runs)

    def forward(self, state, tokens, last_only=False):
        self.log.append(len(tokens))
        self.whose += [state] if len(tokens) > 1 else []
        return self._inner.forward(state, tokens, last_only)


@pytest.mark.parametrize("answering, readers", [(1, 1), (1, 2), (1, 4), (3, 1)])
def test_answers_get_their_share_of_the_time_and_prompts_at_least_half(generator, monkeypatch, answering, readers):
    """A chunk of 64 counts as eight seconds, a token of all answers as one."""
    runner = Logged(generator.session)

    def seconds(work):
        work()
        return {64: 8.0, 1: 1.0}.get(runner.log[-1], 0.0)

    monkeypatch.setattr("runtime_py.serving.scheduler._seconds", seconds)
    long = tuple(5 + i % 200 for i in range(64 * 6))
    prompts = [*[(5, 6, 7 + i) for i in range(answering)], *[(8 + i, *long) for i in range(readers)]]
    _, ends, _ = scheduled(runner, generator, prompts, count=30)
    assert all(isinstance(end, Finished) for end in ends)
    chunks = [i for i, count in enumerate(runner.log) if count == 64]
    assert chunks[1] - chunks[0] - 1 == 8 * min(answering, readers) // readers


def test_short_prompts_pass_a_long_one_which_goes_on_all_the_same(generator):
    long, short = tuple(5 + i % 200 for i in range(700)), [tuple(range(9 + i, 29 + i)) for i in range(6)]
    runner = Logged(generator.session)
    _, ends, order = scheduled(runner, generator, [long, *short])
    assert all(isinstance(end, Finished) for end in ends) and order[-1] == 0
    assert [count for count in runner.log if count > 1][:4] == [20, 64, 20, 64]


def test_the_prompt_with_the_least_left_goes_on(generator):
    """Not the shortest one: the first, longest prompt has less to read when the third is read."""
    runner = Logged(generator.session)
    prompts = [tuple(5 + (i + first) % 200 for i in range(count)) for first, count in ((0, 520), (1, 400), (2, 300))]
    _, ends, order = scheduled(runner, generator, prompts)
    assert all(isinstance(end, Finished) for end in ends) and order == [2, 0, 1]
    whose = [id(state) for state in runner.whose]
    third, first = whose[:2]
    left = whose.count(first) - 1
    assert whose[2] == third and left > 1 and whose[3 : 3 + left] == [first] * left


def test_a_second_start_finds_the_prompts_of_the_first(generator, served_folder, tmp_path):
    prompt = tuple(5 + i % 200 for i in range(300))
    expected = scheduled(generator.session, generator, [prompt])[0]
    for reused, keys, tenant in ((0, ("a", "b"), 1), (256, ("b",), 0), (0, ("c",), 0), (256, ("x", "y", "b"), 2)):
        prompts = PromptCache(tmp_path / "c", 1 << 30, served_folder, generator.session)
        settings = ServeSettings(sessions=1, api_key=keys)
        scheduler = Scheduler(generator.session, generator.tokenizer, settings, prompts=prompts)
        found, ends, _ = answers(scheduler, [prompt], tenant=tenant)
        scheduler.close()
        assert found == expected and ends[0].reused == reused


def test_a_server_that_shares_nothing_keeps_nothing(generator, served_folder, tmp_path):
    prompts = PromptCache(tmp_path / "c", 1 << 30, served_folder, generator.session)
    settings = ServeSettings(sessions=1, share_prefixes=False)
    scheduler = Scheduler(generator.session, generator.tokenizer, settings, prompts=prompts)
    answers(scheduler, [tuple(range(5, 205))])
    scheduler.close()
    assert not list((tmp_path / "c").iterdir())
