"""The OpenAI-compatible HTTP application over one scheduler."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from export.contract.errors import InputError
from runtime_py.chat.conversation import prompt_ids
from runtime_py.chat.template import Template
from runtime_py.serving.answering import Answering, Plan
from runtime_py.serving.guard import App, tenant_of
from runtime_py.serving.page.document import chat_page
from runtime_py.serving.requests import schema
from runtime_py.serving.requests.errors import ApiError, for_clients
from runtime_py.serving.requests.messages import messages as read_messages
from runtime_py.serving.requests.messages import template_variables
from runtime_py.serving.requests.schema import Served
from runtime_py.serving.requests.tools import tool_use
from runtime_py.serving.responses import DONE, Answer, closing_usage, event, whole
from runtime_py.serving.scheduler import Busy, Event, Failed, Finished, Job, Places, Scheduler
from runtime_py.serving.settings import ServeSettings
from runtime_py.serving.shell import Shell, disconnected, json_object
from runtime_py.structured.compiler import Compiled
from runtime_py.text.generation import Constraint, GenerationRequest, Piece
from runtime_py.text.generator import TextGenerator, default_sampling
from runtime_py.text.tokenizing import TooLong, encode_prompt
from runtime_py.tool_calls.answer import AnswerReader

T = TypeVar("T")
_WRITERS = 2  # prompts that are rendered and tokenized at a time
_COMPLETION_TOKENS = 16  # the API's own default for completions


@dataclass(frozen=True)
class _Where:
    """The field of a request that a prompt is made of, and the variables of its template."""

    name: str
    variables: tuple[str, ...] = ()

    def of(self, message: str) -> str:
        """The field that an error's message begins with."""
        refused = next((name for name in self.variables if message.startswith(f"{name}: ")), None)
        return self.name if refused is None else f"chat_template_kwargs.{refused[:100]}"


@dataclass(frozen=True)
class Constrained:
    """What holds the answers of a request, and who reads them."""

    constraint: Callable[[frozenset[int]], Constraint] | None = None
    shown: frozenset[str] = frozenset()
    reader: Callable[[], AnswerReader | None] = lambda: None


FREE = Constrained()


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
        self.scheduler = Scheduler(generator.session, generator.tokenizer, settings, generator.prompt_cache)
        self._answering = Answering(generator, template)
        self._writers = ThreadPoolExecutor(_WRITERS, "athena-prompts")
        self._grammars = ThreadPoolExecutor(1, "athena-grammars")  # apart: one that takes long holds no prompt up
        self._shell = Shell(model, settings, self.scheduler.alive, self.scheduler.load, _details(generator))
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
        routes = [
            Route("/v1/completions", self._completions, methods=["POST"]),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/embeddings", self._embeddings, methods=["POST"]),
            Route("/v1/rerank", self._rerank, methods=["POST"]),
        ]
        return self._shell.application([*routes, *([Route("/", chat_page)] if self._settings.page else [])])

    def close(self) -> None:
        """Stop working; what runs or waits fails."""
        self._writers.shutdown(wait=False, cancel_futures=True)
        self._grammars.shutdown(wait=False, cancel_futures=True)
        self._answering.close()
        self.scheduler.close()

    async def _rerank(self, request: Request) -> Response:
        raise ApiError(400, f"{self._model!r} generates text; /v1/rerank needs the folder of a reranker", "model")

    async def _embeddings(self, request: Request) -> Response:
        raise ApiError(400, f"{self._model!r} generates text; embeddings need the folder of an encoder", "model")

    async def _completions(self, request: Request) -> Response:
        body = json_object(await request.body())
        options = schema.options(body, self._served, False, _COMPLETION_TOKENS)
        prompt, generator = schema.prompt(body), self._generator
        if isinstance(prompt, str):
            make = partial(encode_prompt, generator.tokenizer, prompt, generator.most_bytes)
        else:
            make = partial(list, prompt)
        return await self._respond(request, make, options, _Where("prompt"), Plan(form=options.form), chat=False)

    async def _chat(self, request: Request) -> Response:
        body = json_object(await request.body())
        options = schema.options(body, self._served, True, None)
        messages, variables = read_messages(body, self._settings.ignore_unknown), template_variables(body)
        generator, where = self._generator, _Where("messages", tuple(variables))
        try:
            plan, told, shown = self._answering.chat(messages, variables, tool_use(body), options.form)
        except InputError as error:
            raise ApiError(400, self._told(error), where.of(str(error))) from None
        make = partial(prompt_ids, told, self._template, generator.tokenizer, shown, generator.most_bytes)
        return await self._respond(request, make, options, where, plan, chat=True)

    async def _respond(
        self,
        request: Request,
        make: Callable[[], list[int]],
        options: schema.Options,
        where: _Where,
        plan: Plan,
        chat: bool,
    ) -> Response:
        """make: gives the prompt's ids; it is called once the request has its places in the queue."""
        arrived = time.perf_counter()
        gone = asyncio.ensure_future(disconnected(request))
        try:
            with self._places(options.choices) as places:
                ids = await self._prompt(make, gone, where)
                if ids is None:
                    return self._shell.count(request, Response(status_code=499))  # nobody reads it
                end = self._answering.prompt_end(ids) if plan.reads() else ""
                grammar = await self._grammar(plan, end, gone) if plan.form or plan.asked.tools else None
                if gone.done():
                    return self._shell.count(request, Response(status_code=499))
                constrained = Constrained(
                    grammar.constraint if grammar else None, plan.shown(), partial(plan.reader, end)
                )
                running = self._start(ids, options, chat, arrived, places, tenant_of(request), constrained)
            if not options.stream:
                return self._shell.count(request, await self._whole(gone, running))
            return await self._streamed(request, gone, running, options)
        finally:
            gone.cancel()

    @contextmanager
    def _places(self, count: int) -> Iterator[Places]:
        try:
            with self.scheduler.places(count) as places:
                yield places
        except Busy as busy:
            raise ApiError(
                429, "too many requests are waiting", code="queue_full", retry_after=busy.retry_after
            ) from None

    async def _prompt(
        self, make: Callable[[], list[int]], gone: asyncio.Future[None], where: _Where
    ) -> list[int] | None:
        """The prompt's ids; None when the client went away. Few prompts are made at a time, the others wait."""
        try:
            return await self._before_gone(self._writers, make, gone)
        except TooLong as error:
            message = f"{error}; the model's context is {self._generator.context}"
            raise ApiError(400, message, where.name, "context_length_exceeded") from None
        except InputError as error:
            raise ApiError(400, self._told(error), where.of(str(error))) from None

    async def _grammar(self, plan: Plan, end: str, gone: asyncio.Future[None]) -> Compiled | None:
        """The compiled grammar; None when the client went away. end: of the prompt."""
        try:
            return await self._before_gone(self._grammars, partial(self._answering.compiled, plan, end), gone)
        except InputError as error:
            asked = plan.form.where if plan.form else "tools"
            field = str(error).split(":")[0].split(" ")[0]  # a part of what was asked for, in most messages
            raise ApiError(400, self._told(error), field if field.startswith(("tools", asked)) else asked) from None

    async def _before_gone(
        self, threads: ThreadPoolExecutor, work_to_do: Callable[[], T], gone: asyncio.Future[None]
    ) -> T | None:
        """What the work gives in one of the threads; None when the client goes away first. Raises what it raises."""
        work = asyncio.get_running_loop().run_in_executor(threads, work_to_do)
        try:
            waiting: set[asyncio.Future[Any]] = {gone, work}
            await asyncio.wait(waiting, timeout=self._settings.seconds, return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                return None
            if not work.done():
                raise ApiError(504, "the time limit passed before the prompt was read", code="timeout")
            return work.result()
        finally:
            work.cancel()  # what did not begin never will
            work.add_done_callback(lambda done: done.cancelled() or done.exception())

    def _told(self, error: Exception) -> str:
        return for_clients(str(error), self._generator.folder)

    async def _streamed(
        self, request: Request, gone: asyncio.Future[None], running: Running, options: schema.Options
    ) -> Response:
        """The first event decides the status: a request that fails at once is an error, not a broken stream."""
        try:
            first = await _before(gone, running.events)
            if first is None:
                self._cancel(running)
                return self._shell.count(request, Response(status_code=499))
            if isinstance(first[1], Failed):
                raise self._failure(first[1])
        except BaseException:
            self._cancel(running)
            raise
        self.metrics.requests.labels(request.url.path, 200).inc()
        return _Stream(self._stream(running, first, options), lambda: self._cancel(running))

    def _start(
        self, ids: list[int], options: schema.Options, chat: bool, arrived: float | None = None,
        places: Places | None = None, tenant: Hashable = None, constrained: Constrained = FREE,
    ) -> Running:  # fmt: skip
        """arrived: on time.perf_counter(), None: now; places: those kept for the request, None: they are asked for."""
        generator, arrived = self._generator, time.perf_counter() if arrived is None else arrived
        requests = self._requests(ids, options, "messages" if chat else "prompt", constrained)
        events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        listener = partial(_forward, asyncio.get_running_loop(), events)
        left = max(self._settings.seconds - (time.perf_counter() - arrived), 0.0)
        jobs = self.scheduler.submit(requests, listener, left, places, tenant)
        self.metrics.prompt_tokens.inc(len(ids))
        first = Answer(self._model, chat, len(ids), generator.tokenizer, options.top_logprobs is not None)
        answers = [replace(first, index=i, reader=constrained.reader()) for i in range(len(jobs))]
        return Running(jobs, events, answers, arrived)

    def _requests(
        self, ids: list[int], options: schema.Options, where: str, constrained: Constrained
    ) -> list[GenerationRequest]:
        """One for every choice. Raises ApiError when the prompt does not fit the model."""
        generator = self._generator
        if not ids:
            raise ApiError(400, "the prompt is empty: at least one token is needed", where)
        room = generator.context - len(ids)
        if room < 1:
            message = f"the prompt has {len(ids)} tokens; the model's context is {generator.context}"
            raise ApiError(400, message, where, "context_length_exceeded")
        if min(ids) < 0 or max(ids) >= generator.session.vocab_size:
            raise ApiError(
                400, f"the prompt has a token outside the vocabulary of {generator.session.vocab_size}", where
            )
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
            constraint=constrained.constraint,
            shown=constrained.shown,
        )
        return [replace(request, sampling=options.sampling_of(i)) for i in range(options.choices)]

    async def _whole(self, gone: asyncio.Future[None], running: Running) -> Response:
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
                    if (text or (pieces and answer.with_logprobs)) and (data := answer.chunk(pieces, text, None)):
                        yield data
                    end = mine[-1] if mine else None
                    if isinstance(end, Failed):
                        yield event(self._failure(end).body())
                        return
                    if isinstance(end, Finished):
                        yield answer.chunk([], end.tail, end.reason)
                        left -= 1
                found = [await running.events.get()] if left else []
            if options.include_usage:
                yield closing_usage(running.answers)
            yield DONE
        except InputError as error:  # the tokenizer cannot say what a token's text is
            yield event(ApiError(500, self._told(error)).body())
        finally:
            self._cancel(running)

    def _failure(self, failed: Failed) -> ApiError:
        message = for_clients(failed.message, self._generator.folder)
        if failed.field:
            return ApiError(400, message, failed.field)
        return ApiError(504 if failed.timeout else 500, message, code="timeout" if failed.timeout else None)

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


def _details(generator: TextGenerator) -> dict[str, Any]:
    """Of the list of models: the model's context, and the sampling that `chat` and the page begin with."""
    begins = default_sampling(generator.folder, None, None, None, 0)
    sampling = {name: getattr(begins, name) for name in ("temperature", "top_k", "top_p", "min_p")}
    return {"max_model_len": generator.context, "recommended_sampling": sampling}


def _forward(
    loop: asyncio.AbstractEventLoop, events: asyncio.Queue[tuple[int, Event]], index: int, found: Event
) -> None:
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
