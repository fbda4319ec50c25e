"""The OpenAI-compatible HTTP application over one scheduler."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from export.errors import InputError
from runtime_py.chat.conversation import prompt_ids
from runtime_py.chat.template import Template
from runtime_py.generate import TextGenerator
from runtime_py.generation import GenerationRequest, Piece
from runtime_py.serving import schema
from runtime_py.serving.guard import Guard
from runtime_py.serving.responses import DONE, Answer, event
from runtime_py.serving.scheduler import Busy, Event, Failed, Finished, Job, Scheduler
from runtime_py.serving.schema import ApiError
from runtime_py.serving.settings import ServeSettings
from runtime_py.serving.shell import Shell, disconnected, json_object

_COMPLETION_TOKENS = 16  # the API's own default for completions


@dataclass
class Running:
    """A submitted request and the events it has produced."""

    job: Job
    events: asyncio.Queue[Event]
    answer: Answer
    arrived: float


class Server:
    """The routes of a model that generates text."""

    def __init__(self, generator: TextGenerator, template: Template, model: str, settings: ServeSettings) -> None:
        self._generator, self._template, self._model, self._settings = generator, template, model, settings
        self.scheduler = Scheduler(generator.session, generator.tokenizer, settings)
        self._shell = Shell(model, settings, self.scheduler.alive, self.scheduler.load)
        self.metrics = self._shell.metrics

    def application(self) -> Guard:
        """The ASGI application."""
        return self._shell.application(
            [
                Route("/v1/completions", self._completions, methods=["POST"]),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/embeddings", self._embeddings, methods=["POST"]),
            ]
        )

    def close(self) -> None:
        """Stop working; what runs or waits fails."""
        self.scheduler.close()

    async def _embeddings(self, request: Request) -> Response:
        raise ApiError(400, f"{self._model!r} generates text; embeddings need the folder of an encoder", "model")

    async def _completions(self, request: Request) -> Response:
        body = json_object(await request.body())
        options = schema.options(body, self._model, False, _COMPLETION_TOKENS)
        prompt = schema.prompt(body)
        if isinstance(prompt, str):
            encoding = await run_in_threadpool(self._generator.tokenizer.encode, prompt)
            ids = encoding.ids
        else:
            ids = prompt
        return await self._respond(request, ids, options, chat=False)

    async def _chat(self, request: Request) -> Response:
        body = json_object(await request.body())
        options = schema.options(body, self._model, True, None)
        messages = schema.messages(body)
        try:
            ids = await run_in_threadpool(prompt_ids, messages, self._template, self._generator.tokenizer)
        except InputError as error:
            raise ApiError(400, str(error), "messages") from None
        return await self._respond(request, ids, options, chat=True)

    async def _respond(self, request: Request, ids: list[int], options: schema.Options, chat: bool) -> Response:
        running = self._start(ids, options, chat)
        if not options.stream:
            return self._shell.count(request, await self._whole(request, running))
        # The first event decides the status: a request that fails at once is an error, not a broken stream.
        first = await running.events.get()
        if isinstance(first, Failed):
            raise _failure(first)
        self.metrics.requests.labels(request.url.path, 200).inc()
        stream = self._stream(running, first, options)
        return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})

    def _start(self, ids: list[int], options: schema.Options, chat: bool) -> Running:
        generator = self._generator
        where = "messages" if chat else "prompt"
        if not ids:
            raise ApiError(400, "the prompt is empty: at least one token is needed", where)
        if min(ids) < 0 or max(ids) >= generator.session.vocab_size:
            raise ApiError(
                400, f"the prompt has a token outside the vocabulary of {generator.session.vocab_size}", where
            )
        room = generator.context - len(ids)
        if room < 1:
            message = f"the prompt has {len(ids)} tokens; the model's context is {generator.context}"
            raise ApiError(400, message, where, "context_length_exceeded")
        request = GenerationRequest(
            prompt=tuple(ids),
            sampling=options.sampling,
            max_tokens=min(options.max_tokens or room, room, self._settings.max_tokens),
            stop_tokens=generator.stop,
            stop_strings=options.stop,
            top_logprobs=options.top_logprobs,
        )
        events: asyncio.Queue[Event] = asyncio.Queue()
        loop, arrived = asyncio.get_running_loop(), time.perf_counter()
        try:
            job = self.scheduler.submit(request, lambda e: _forward(loop, events, e), self._settings.seconds)
        except Busy as busy:
            raise ApiError(
                429, "too many requests are waiting", code="queue_full", retry_after=busy.retry_after
            ) from None
        self.metrics.prompt_tokens.inc(len(ids))
        answer = Answer(self._model, chat, len(ids), generator.tokenizer, options.top_logprobs is not None)
        return Running(job, events, answer, arrived)

    async def _whole(self, request: Request, running: Running) -> Response:
        gone = asyncio.ensure_future(disconnected(request))
        pieces: list[Piece] = []
        try:
            while True:
                waiting = asyncio.ensure_future(running.events.get())
                await asyncio.wait({gone, waiting}, return_when=asyncio.FIRST_COMPLETED)
                if not waiting.done():
                    waiting.cancel()
                    return Response(status_code=499)  # nobody reads it
                found = waiting.result()
                self._note(running, found)
                if isinstance(found, Piece):
                    pieces.append(found)
                elif isinstance(found, Failed):
                    raise _failure(found)
                else:
                    text = "".join(piece.text for piece in pieces) + found.tail
                    return JSONResponse(running.answer.whole(pieces, text, found.reason))
        finally:
            gone.cancel()
            self.scheduler.cancel(running.job)

    async def _stream(self, running: Running, first: Event, options: schema.Options) -> AsyncIterator[bytes]:
        """Chunks; tokens that are already there travel together. Ends early, cancelling, when the client goes away."""
        answer, found = running.answer, first
        try:
            if answer.chat:
                yield answer.opening()
            while True:
                pieces: list[Piece] = []
                while isinstance(found, Piece):
                    self._note(running, found)
                    pieces.append(found)
                    if running.events.empty():
                        break
                    found = running.events.get_nowait()
                text = "".join(piece.text for piece in pieces)
                if text or (pieces and answer.with_logprobs):
                    yield answer.chunk(pieces, text, None)
                if isinstance(found, Piece):
                    found = await running.events.get()
                    continue
                self._note(running, found)
                if isinstance(found, Failed):
                    yield event(_failure(found).body())
                    return
                yield answer.chunk([], found.tail, found.reason)
                if options.include_usage:
                    yield answer.closing_usage()
                yield DONE
                return
        finally:
            self.scheduler.cancel(running.job)

    def _note(self, running: Running, found: Event) -> None:
        elapsed = time.perf_counter() - running.arrived
        if isinstance(found, Piece):
            if running.answer.tokens == 0:
                self.metrics.first_token.observe(elapsed)
            running.answer.tokens += 1
            self.metrics.generated_tokens.inc()
        elif isinstance(found, Finished):
            running.answer.reused = found.reused
            self.metrics.reused_tokens.inc(found.reused)
            self.metrics.seconds.observe(elapsed)


def _forward(loop: asyncio.AbstractEventLoop, events: asyncio.Queue[Event], found: Event) -> None:
    loop.call_soon_threadsafe(events.put_nowait, found)


def _failure(failed: Failed) -> ApiError:
    return ApiError(504 if failed.timeout else 500, failed.message, code="timeout" if failed.timeout else None)
