"""From the events of a running request to what its client reads: one object, or a stream of server-sent events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.responses import JSONResponse, Response, StreamingResponse

from export.contract.errors import InputError
from runtime_py.serving.answers.answer import Answer
from runtime_py.serving.operating.clock import Clock
from runtime_py.serving.operating.metrics import ModelMetrics
from runtime_py.serving.requests.errors import ApiError, for_clients
from runtime_py.serving.scheduler import Event, Failed, Finished, Job, Scheduler
from runtime_py.text.generation import Piece


@dataclass
class Running:
    """A submitted request: its choices, and the events they have produced with their numbers."""

    jobs: list[Job]
    events: asyncio.Queue[tuple[int, Event]]
    answers: list[Answer]
    arrived: float
    clock: Clock
    notes: dict[str, Any] = field(default_factory=dict)  # for its line in the log


class Delivery:
    """Of one model's requests."""

    def __init__(self, scheduler: Scheduler, metrics: ModelMetrics, folder: Path) -> None:
        """folder: of the model, whose names clients do not see."""
        self._scheduler, self._metrics, self._folder = scheduler, metrics, folder

    async def streamed(self, gone: asyncio.Future[None], running: Running, include_usage: bool) -> Response:
        """The first event decides the status: a request that fails at once is an error, not a broken stream."""
        try:
            first = await _before(gone, running.events)
            if first is None:
                self._cancel(running)
                return Response(status_code=499)
            if isinstance(first[1], Failed):
                raise self._failure(first[1])
        except BaseException:
            self._cancel(running)
            raise
        return _Stream(self._stream(running, first, include_usage), lambda: self._cancel(running))

    async def whole(self, gone: asyncio.Future[None], running: Running) -> Response:
        pieces: list[list[Piece]] = [[] for _ in running.answers]
        ends: dict[int, Finished] = {}
        try:
            while len(ends) < len(pieces):
                event_found = await _before(gone, running.events)
                if event_found is None:
                    return Response(status_code=499)  # nobody reads it
                index, found = event_found
                self._note(running, index, found)
                if isinstance(found, Piece):
                    pieces[index].append(found)
                elif isinstance(found, Failed):
                    raise self._failure(found)
                else:
                    ends[index] = found
        finally:
            self._cancel(running)
        choices = []
        for index, answer in enumerate(running.answers):
            text = "".join(piece.text for piece in pieces[index]) + ends[index].tail
            choices.append(answer.choice(pieces[index], text, ends[index].reason))
        return JSONResponse(running.answers[0].whole(running.answers, choices))

    async def _stream(self, running: Running, first: tuple[int, Event], include_usage: bool) -> AsyncIterator[bytes]:
        """Chunks; tokens that are already there travel together. Ends early, cancelling, when the client goes away."""
        left, found = len(running.answers), [first]
        try:
            for answer in running.answers:
                if answer.chat:
                    yield answer.opening()
            while left:
                while not running.events.empty():
                    found.append(running.events.get_nowait())
                for index, answer in enumerate(running.answers):
                    mine = [one for number, one in found if number == index]
                    for one in mine:
                        self._note(running, index, one)
                    pieces = [one for one in mine if isinstance(one, Piece)]
                    text = "".join(piece.text for piece in pieces)
                    if (text or (pieces and answer.with_logprobs)) and (data := answer.chunk(pieces, text, None)):
                        yield data
                    end = mine[-1] if mine else None
                    if isinstance(end, Failed):
                        yield answer.failed(self._failure(end).body())
                        return
                    if isinstance(end, Finished):
                        yield answer.chunk([], end.tail, end.reason)
                        left -= 1
                found = [await running.events.get()] if left else []
            yield running.answers[0].closing(running.answers, include_usage)
        except InputError as error:  # the tokenizer cannot say what a token's text is
            yield running.answers[0].failed(ApiError(500, for_clients(str(error), self._folder)).body())
        finally:
            self._cancel(running)

    def _failure(self, failed: Failed) -> ApiError:
        message = for_clients(failed.message, self._folder)
        if failed.field:
            return ApiError(400, message, failed.field)
        return ApiError(504 if failed.timeout else 500, message, code="timeout" if failed.timeout else None)

    def _cancel(self, running: Running) -> None:
        for job in running.jobs:
            self._scheduler.cancel(job)

    def _note(self, running: Running, index: int, found: Event) -> None:
        answer = running.answers[index]
        if isinstance(found, Piece):
            answer.tokens += 1
            self._metrics.generated_tokens.inc()
            return
        job, waited = running.jobs[index], time.monotonic() - time.perf_counter() + running.arrived
        if job.started:
            self._metrics.queue_seconds.observe(max(job.started - waited, 0.0))
        if isinstance(found, Finished):
            answer.reused = found.reused
            if index == 0:  # the prompt counts once
                self._metrics.reused_tokens.inc(found.reused)
                (self._metrics.cache_hits if found.reused else self._metrics.cache_misses).inc()
            self._metrics.seconds.observe(time.perf_counter() - running.arrived)
        running.notes |= {
            "prompt_tokens": answer.prompt_tokens,
            "cached_tokens": running.answers[0].reused,
            "completion_tokens": sum(one.tokens for one in running.answers),
            "first_token_seconds": running.clock.first,
        }


def forward(
    loop: asyncio.AbstractEventLoop, events: asyncio.Queue[tuple[int, Event]], clock: Clock, index: int, found: Event
) -> None:
    """Hand an event of the scheduler's thread to the loop."""
    if isinstance(found, Piece):
        clock.token(index)
    loop.call_soon_threadsafe(events.put_nowait, (index, found))


async def _before(gone: asyncio.Future[None], events: asyncio.Queue[tuple[int, Event]]) -> tuple[int, Event] | None:
    """The next event; None when the client goes away first."""
    event = asyncio.ensure_future(events.get())
    waiting: set[asyncio.Future[Any]] = {gone, event}
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        return event.result() if event.done() else None
    finally:
        event.cancel()


class _Stream(StreamingResponse):
    """Server-sent events; `end` is called when they end, and also when the client left before the first."""

    def __init__(self, events: AsyncIterator[bytes], end: Callable[[], None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._end = end

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._end()
