"""Requests share one model: a thread gives every running request a token a round, the others wait in a queue.

The tokens of a round are computed together, so that the weights are read once for all of them (Runner.advance), and
none depends on which others there are. Where few answers run, free places of the step go to guessed tokens. A prompt is
read chunk by chunk between the rounds: while others generate, chunks are small and prompts get half of the time, so
that one at most halves their speed and no token waits for long. Where more prompts than answers are at hand, they get
more: every request has its share of the time. The prompt with the least left and the one that came first go on in
turns: short ones pass long ones, and none waits for ever.

Each running request has a cache of its own. A finished one leaves it, with the tokens it holds, to whoever comes next:
the waiting request takes the free cache that shares the longest prefix with its prompt. So memory is bounded by the
number of sessions, a conversation's next turn computes only what is new, and (generation.py) no answer depends on any
of it. How much is reused tells what was asked before, so requests of different tenants (API keys) share no cache. With
`reuse_answers` the cache of generated tokens is used, too: faster, but a near tie may fall the other way.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tokenizers import Tokenizer

from export.contract.errors import InputError, NotFiniteError
from runtime_py.engine.state import CHUNK
from runtime_py.load import Runner
from runtime_py.prompt_cache.store import PromptCache
from runtime_py.serving.settings import ServeSettings
from runtime_py.serving.turns import Turns
from runtime_py.speculation.speculation import Speculation
from runtime_py.structured.constraint import FormError
from runtime_py.text.generation import Generation, GenerationRequest, Piece, prompted, reusable

# Tokens of a prompt that are read between two rounds of answers, which wait for them. SmolLM2-135M at 3 bits, Zen 4:
# chunks of 16, 32, 64, 128 tokens are read at 0.40, 0.66, 0.80 and 0.97 of the speed of 256, and one of 64 takes 0.31
# of its time.
_FEW = 64


class Busy(Exception):
    """The queue is full. `retry_after`: seconds after which a place is likely to be free."""

    def __init__(self, retry_after: int) -> None:
        super().__init__("the queue is full")
        self.retry_after = retry_after


@dataclass(frozen=True)
class Finished:
    """The answer is complete: reason "stop" or "length", text that was held back, prompt tokens found in a cache."""

    reason: str
    tail: str
    reused: int


@dataclass(frozen=True)
class Failed:
    """The answer could not be completed; `timeout`: only time ran out; `field`: what the request has wrong."""

    message: str
    timeout: bool = False
    field: str = ""


Event = Piece | Finished | Failed


@dataclass
class Places:
    """Places of the queue that a request holds until it is submitted."""

    left: int


@dataclass(eq=False)
class _Slot:
    state: Any
    tokens: list[int] = field(default_factory=list)  # what the state's cache holds, as far as it may be used
    tenant: Hashable = None  # whose tokens they are
    prompted: int = 0  # of these, how many first ones were computed as a prompt
    adapter: str = ""  # that they were computed with
    used: float = 0.0


@dataclass(eq=False)
class Job:
    """One choice of a submitted request. `cancelled` may be set by any thread."""

    request: GenerationRequest
    listener: Callable[[Event], None]
    deadline: float
    tenant: Hashable = None
    cancelled: bool = False
    generation: Generation | None = None
    slot: _Slot | None = None
    started: float = 0.0


class Scheduler:
    """Owns the model: nobody else may call it while the scheduler lives."""

    def __init__(
        self, runner: Runner, tokenizer: Tokenizer, settings: ServeSettings, turns: Turns | None = None,
        prompts: PromptCache | None = None,
    ) -> None:  # fmt: skip
        """turns: with other models of the server. prompts: where they are looked for, and kept, beside memory."""
        self._turns, self._prompts = turns or Turns(), prompts
        self._runner, self._tokenizer, self._settings = runner, tokenizer, settings
        self.speculation = Speculation(runner, settings.speculate)  # its counts are for whoever wants to show them
        self._free = [_Slot(runner.new_state()) for _ in range(settings.sessions)]
        self._waiting: deque[Job] = deque()
        self._active: list[Job] = []
        self._wake = threading.Condition()
        self._closing = False
        self._reserved = 0  # places of requests whose prompt is not tokenized yet
        self._typical = 1.0  # seconds a request took, a running mean
        self._owed = 0.0  # seconds that running answers are to have before the next chunk of a prompt
        self._first_come = False  # whether the next chunk is of the prompt that came first
        self._thread = threading.Thread(target=self._work, name="athena-scheduler", daemon=True)
        self._thread.start()

    @contextmanager
    def places(self, count: int) -> Iterator[Places]:
        """Keep so many places of the queue within, before a prompt costs anything; submit() takes them.

        Raises Busy when the queue has too few, RuntimeError when the scheduler has ended.
        """
        with self._wake:
            if self._closing:
                raise RuntimeError("the scheduler has ended")
            waiting = sum(not job.cancelled for job in self._waiting) + self._reserved
            room = self._settings.queue + max(self._settings.sessions - len(self._active), 0)
            if waiting + count > room:
                ahead = waiting / self._settings.sessions
                raise Busy(min(max(round(self._typical * (ahead + 1)), 1), 60))
            self._reserved += count
        places = Places(count)
        try:
            yield places
        finally:
            with self._wake:
                self._reserved -= places.left
                places.left = 0

    def submit(
        self, requests: Sequence[GenerationRequest], listener: Callable[[int, Event], None], seconds: float,
        places: Places | None = None, tenant: Hashable = None,
    ) -> list[Job]:  # fmt: skip
        """Queue the choices of one request, all or none. `listener` gets the number of a choice and its event.

        places: those kept for them; None: they are asked for here. tenant: whose request it is; only requests of the
        same one use each other's caches. The events come from the scheduler's thread, the last one of every choice is
        Finished or Failed. Raises Busy when the queue has too few places, RuntimeError when the scheduler has ended.
        """
        if places is None:
            with self.places(len(requests)) as kept:
                return self.submit(requests, listener, seconds, kept, tenant)
        deadline = time.monotonic() + seconds
        jobs = [Job(request, partial(listener, i), deadline, tenant) for i, request in enumerate(requests)]
        with self._wake:
            if self._closing:
                raise RuntimeError("the scheduler has ended")
            self._reserved -= places.left
            places.left = 0
            self._waiting.extend(jobs)
            self._wake.notify()
        return jobs

    def cancel(self, job: Job) -> None:
        """Stop a request whose client went away; it gets no further event."""
        with self._wake:
            job.cancelled = True
            self._wake.notify()

    def load(self) -> tuple[int, int]:
        """(running, waiting) requests."""
        with self._wake:
            return len(self._active), len(self._waiting)

    def alive(self) -> bool:
        """Whether requests are still worked on."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Stop after the current step; what runs or waits fails."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(timeout=60)
        if self._prompts:
            self._prompts.close()

    def _work(self) -> None:
        message = "the scheduler failed"
        try:
            while self._round():
                pass
            message = "the server is shutting down"
        finally:
            with self._wake:
                self._closing = True
                left = [*self._active, *self._waiting]
                self._active, self._waiting = [], deque()
            for job in left:
                _tell(job, Failed(message))

    def _round(self) -> bool:
        """Start what can start and give every running request one step; False when the scheduler is to end."""
        with self._wake:
            while not (self._waiting or self._active or self._closing):
                self._wake.wait()
            if self._closing:
                return False
            self._expire_waiting()
            while self._waiting and self._free:
                self._begin(self._waiting.popleft())
        staying = [job for job in list(self._active) if not self._ended(job)]
        answering = [job for job in staying if job.generation and job.generation.answering]
        reading = [job for job in staying if job not in answering]
        if answering:
            with self._turns:
                self._owed -= _seconds(partial(self._answer, answering))
        if reading and (not answering or self._owed <= 0):
            with self._turns:
                taken = _seconds(partial(self._read, reading, _FEW if answering else CHUNK))
            self._owed = taken * min(len(answering) / len(reading), 1.0)
        return True

    def _expire_waiting(self) -> None:
        now = time.monotonic()
        kept = deque(job for job in self._waiting if not job.cancelled and job.deadline > now)
        for job in self._waiting:
            if not job.cancelled and job.deadline <= now:
                _tell(job, Failed("the time limit passed while the request waited", timeout=True))
        self._waiting = kept

    def _begin(self, job: Job) -> None:
        def shared(slot: _Slot) -> int:
            mine = self._settings.share_prefixes and slot.tenant == job.tenant
            mine = mine and slot.adapter == job.request.adapter
            return reusable(slot.tokens, job.request.prompt) if mine else 0

        slot = max(self._free, key=lambda s: (shared(s), -s.used))
        reused, slot.tokens, slot.tenant = shared(slot), [], job.tenant
        slot.adapter = job.request.adapter
        try:
            if self._prompts and self._settings.share_prefixes:
                key, adapter = self._key_of(job.tenant), job.request.adapter
                found = self._prompts.restore(slot.state, job.request.prompt, key, adapter, reused + 1)
                reused, slot.prompted = max(reused, found), max(slot.prompted, found)
            slot.prompted = prompted(slot.prompted, reused, len(job.request.prompt))
            job.generation = Generation(
                job.request, self._runner, self._tokenizer, slot.state, reused, self.speculation
            )
        except BaseException as error:  # one request's failure must not end the others
            _tell(job, _failed(error))
            return
        self._free.remove(slot)
        job.slot, job.started = slot, time.monotonic()
        self._active.append(job)

    def _ended(self, job: Job) -> bool:
        """End a request that nobody waits for any more, or whose time is over."""
        if job.cancelled:
            self._end(job, None)
        elif time.monotonic() > job.deadline:
            self._end(job, Failed("the time limit passed before the answer was complete", timeout=True))
        else:
            return False
        return True

    def _key_of(self, tenant: Hashable) -> str:
        """The API key behind a tenant's number, which is another one's when the server starts with other keys."""
        keys = self._settings.keys()
        return keys[tenant] if isinstance(tenant, int) and tenant < len(keys) else ""

    def _answer(self, jobs: list[Job]) -> None:
        """A token for each of these requests, and more where guesses are right."""
        running = [(job, job.generation) for job in jobs if job.generation]
        guessed = self.speculation.lengths([one.look() for _, one in running])
        runs = [one.run(count) for (_, one), count in zip(running, guessed)]
        try:
            found = self.speculation.advance([one.state for _, one in running], runs)
        except BaseException:  # memory, mostly, and one request's: alone each shows whether it is that one
            for job, _ in running:
                self._attempt(job, partial(_step, job))
            return
        for (job, generation), run, rows in zip(running, runs, found):
            self._attempt(job, partial(generation.take, run, rows))

    def _read(self, jobs: Sequence[Job], most: int) -> None:
        """A chunk of one of these prompts, of so many tokens at most. jobs: as they came."""
        job = jobs[0] if self._first_come else min(jobs, key=lambda job: job.generation.unread if job.generation else 0)
        self._first_come = not self._first_come
        self._attempt(job, partial(_step, job, most))

    def _attempt(self, job: Job, work: Callable[[], Iterable[Piece]]) -> None:
        """One step of a running request."""
        generation = job.generation
        assert generation is not None
        try:
            for piece in work():
                _tell(job, piece)
        except BaseException as error:  # one request's failure must not end the others, not even a panic of Rust
            assert job.slot is not None
            job.generation = None
            with suppress(BaseException):  # without memory for another one, the old state is filled from its start
                job.slot.state = self._runner.new_state()
            self._end(job, _failed(error))
            return
        if generation.finish_reason:
            self._end(job, Finished(generation.finish_reason, generation.tail, generation.reused))

    def _end(self, job: Job, event: Event | None) -> None:
        slot = job.slot
        assert slot is not None
        if job.generation:
            with suppress(BaseException):  # the slot is free again, whatever happens
                slot.tokens = job.generation.cached_tokens(self._settings.reuse_answers)
                if self._prompts and self._settings.share_prefixes:
                    tokens = job.generation.cached_tokens(answers=False)
                    self._prompts.keep(slot.state, tokens[: slot.prompted], self._key_of(job.tenant))
        slot.used = time.monotonic()
        with self._wake:
            self._active.remove(job)
            self._free.append(slot)
        if isinstance(event, Finished):
            self._typical += 0.1 * (slot.used - job.started - self._typical)
        if event is not None:
            _tell(job, event)


def _step(job: Job, most: int = CHUNK) -> Iterable[Piece]:
    assert job.generation is not None
    piece = job.generation.step(most)
    return () if piece is None else (piece,)


def _seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _failed(error: BaseException) -> Failed:
    if isinstance(error, FormError):
        return Failed(str(error), field=error.where)
    known = isinstance(error, InputError | NotFiniteError)
    return Failed(str(error) if known else f"{type(error).__name__} while generating")


def _tell(job: Job, event: Event) -> None:
    if job.cancelled:
        return
    try:
        job.listener(event)
    except RuntimeError:  # the listener's event loop has ended
        job.cancelled = True
