"""The OpenAI-compatible HTTP application over one scheduler."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from functools import partial

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
from runtime_py.serving.errors import ApiError
from runtime_py.serving.guard import App
from runtime_py.serving.messages import messages as read_messages
from runtime_py.serving.messages import template_variables
from runtime_py.serving.responses import DONE, Answer, closing_usage, event, whole
from runtime_py.serving.scheduler import Busy, Event, Failed, Finished, Job, Scheduler
from runtime_py.serving.schema import Served
from runtime_py.serving.settings import ServeSettings
from runtime_py.serving.shell import Shell, disconnected, json_object

_COMPLETION_TOKENS = 16  # the API's own default for completions


@dataclass
class Running:
    """A submitted request: its choices, and the events they have produced with their numbers."""

    jobs: list[Job]
    events: asyncio.Queue[tuple[int, Event]]
    answers: list[Answer]
    arrived: float


class Server:
    """The routes of a model that generates text."""

    def __init__(self, generator: TextGenerator, template: Template, model: str, settings: ServeSettings) -> None:
        self._generator, self._template, self._model, self._settings = generator, template, model, settings
        self.scheduler = Scheduler(generator.session, generator.tokenizer, settings)
        self._shell = Shell(model, settings, self.scheduler.alive, self.scheduler.load)
        self.metrics = self._shell.metrics
        self._served = Served(
            model=model,
            vocabulary=generator.session.vocab_size,
            rules=generator.rules,
            ignore_unknown=settings.ignore_unknown,
            most_choices=settings.sessions + settings.queue,
        )

    def application(self) -> App:
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
        options = schema.options(body, self._served, False, _COMPLETION_TOKENS)
        prompt = schema.prompt(body)
        if isinstance(prompt, str):
            encoding = await run_in_threadpool(self._generator.tokenizer.encode, prompt)
            ids = encoding.ids
        else:
            ids = prompt
        return await self._respond(request, ids, options, chat=False)

    async def _chat(self, request: Request) -> Response:
        body = json_object(await request.body())
        options = schema.options(body, self._served, True, None)
        messages, variables = read_messages(body, self._settings.ignore_unknown), template_variables(body)
        try:
            ids = await run_in_threadpool(prompt_ids, messages, self._template, self._generator.tokenizer, variables)
        except InputError as error:
            refused = next((name for name in variables if str(error).startswith(f"{name}: ")), None)
            where = "messages" if refused is None else f"chat_template_kwargs.{refused[:100]}"
            raise ApiError(400, str(error), where) from None
        return await self._respond(request, ids, options, chat=True)

    async def _respond(self, request: Request, ids: list[int], options: schema.Options, chat: bool) -> Response:
        running = self._start(ids, options, chat)
        if not options.stream:
            return self._shell.count(request, await self._whole(request, running))
        # The first event decides the status: a request that fails at once is an error, not a broken stream.
        first = await running.events.get()
        if isinstance(first[1], Failed):
            self._cancel(running)
            raise _failure(first[1])
        self.metrics.requests.labels(request.url.path, 200).inc()
        stream = self._stream(running, first, options)
        return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})

    def _start(self, ids: list[int], options: schema.Options, chat: bool) -> Running:
        generator = self._generator
        requests = self._requests(ids, options, "messages" if chat else "prompt")
        events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        loop, arrived = asyncio.get_running_loop(), time.perf_counter()
        try:
            jobs = self.scheduler.submit(requests, partial(_forward, loop, events), self._settings.seconds)
        except Busy as busy:
            raise ApiError(
                429, "too many requests are waiting", code="queue_full", retry_after=busy.retry_after
            ) from None
        self.metrics.prompt_tokens.inc(len(ids))
        first = Answer(self._model, chat, len(ids), generator.tokenizer, options.top_logprobs is not None)
        return Running(jobs, events, [replace(first, index=i) for i in range(len(jobs))], arrived)

    def _requests(self, ids: list[int], options: schema.Options, where: str) -> list[GenerationRequest]:
        """One for every choice. Raises ApiError when the prompt does not fit the model."""
        generator = self._generator
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
        stops = options.stop_tokens | (frozenset() if options.ignore_eos else generator.stop)
        if options.rules.min_tokens and len(options.stop_tokens) == generator.session.vocab_size:
            raise ApiError(400, "stop_token_ids leaves no token for the min_tokens before it", "stop_token_ids")
        request = GenerationRequest(
            prompt=tuple(ids),
            sampling=options.sampling,
            max_tokens=min(options.max_tokens or room, room, self._settings.max_tokens),
            stop_tokens=stops,
            stop_strings=options.stop,
            top_logprobs=options.top_logprobs,
            rules=options.rules,
        )
        return [replace(request, sampling=options.sampling_of(i)) for i in range(options.choices)]

    async def _whole(self, request: Request, running: Running) -> Response:
        gone = asyncio.ensure_future(disconnected(request))
        pieces: list[list[Piece]] = [[] for _ in running.answers]
        ends: dict[int, Finished] = {}
        try:
            while len(ends) < len(pieces):
                waiting = asyncio.ensure_future(running.events.get())
                await asyncio.wait({gone, waiting}, return_when=asyncio.FIRST_COMPLETED)
                if not waiting.done():
                    waiting.cancel()
                    return Response(status_code=499)  # nobody reads it
                index, found = waiting.result()
                self._note(running, index, found)
                if isinstance(found, Piece):
                    pieces[index].append(found)
                elif isinstance(found, Failed):
                    raise _failure(found)
                else:
                    ends[index] = found
        finally:
            gone.cancel()
            self._cancel(running)
        choices = []
        for index, answer in enumerate(running.answers):
            text = "".join(piece.text for piece in pieces[index]) + ends[index].tail
            choices.append(answer.choice(pieces[index], text, ends[index].reason))
        return JSONResponse(whole(running.answers, choices))

    async def _stream(
        self, running: Running, first: tuple[int, Event], options: schema.Options
    ) -> AsyncIterator[bytes]:
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
                    if text or (pieces and answer.with_logprobs):
                        yield answer.chunk(pieces, text, None)
                    end = mine[-1] if mine else None
                    if isinstance(end, Failed):
                        yield event(_failure(end).body())
                        return
                    if isinstance(end, Finished):
                        yield answer.chunk([], end.tail, end.reason)
                        left -= 1
                found = [await running.events.get()] if left else []
            if options.include_usage:
                yield closing_usage(running.answers)
            yield DONE
        finally:
            self._cancel(running)

    def _cancel(self, running: Running) -> None:
        for job in running.jobs:
            self.scheduler.cancel(job)

    def _note(self, running: Running, index: int, found: Event) -> None:
        elapsed = time.perf_counter() - running.arrived
        answer = running.answers[index]
        if isinstance(found, Piece):
            if not any(one.tokens for one in running.answers):
                self.metrics.first_token.observe(elapsed)
            answer.tokens += 1
            self.metrics.generated_tokens.inc()
        elif isinstance(found, Finished):
            answer.reused = found.reused
            if index == 0:  # the prompt counts once
                self.metrics.reused_tokens.inc(found.reused)
            self.metrics.seconds.observe(elapsed)


def _forward(
    loop: asyncio.AbstractEventLoop, events: asyncio.Queue[tuple[int, Event]], index: int, found: Event
) -> None:
    loop.call_soon_threadsafe(events.put_nowait, (index, found))


def _failure(failed: Failed) -> ApiError:
    return ApiError(504 if failed.timeout else 500, failed.message, code="timeout" if failed.timeout else None)
