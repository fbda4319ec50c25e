"""A model that generates text, as the server has it: completions, chats and responses over one scheduler."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from export.contract.errors import InputError
from runtime_py.chat.conversation import prompt_ids
from runtime_py.chat.template import Template
from runtime_py.serving.answers.answer import Answer
from runtime_py.serving.answers.response import ResponseAnswer
from runtime_py.serving.delivery import Delivery, Running, forward
from runtime_py.serving.generating.answering import Answering, Plan
from runtime_py.serving.generating.preparation import Preparation, Where
from runtime_py.serving.guard import App, tenant_of
from runtime_py.serving.models.registry import Registry
from runtime_py.serving.models.service import Handler
from runtime_py.serving.operating.clock import Clock
from runtime_py.serving.operating.metrics import Metrics
from runtime_py.serving.page.document import chat_page
from runtime_py.serving.requests import schema
from runtime_py.serving.requests.errors import ApiError, for_clients
from runtime_py.serving.requests.messages import messages as read_messages
from runtime_py.serving.requests.messages import template_variables
from runtime_py.serving.requests.responses import as_chat
from runtime_py.serving.requests.schema import Served
from runtime_py.serving.requests.tools import tool_use
from runtime_py.serving.scheduler import Busy, Event, Places, Scheduler
from runtime_py.serving.settings import ServeSettings
from runtime_py.serving.shell import Shell, disconnected
from runtime_py.serving.turns import Turns
from runtime_py.text.generation import Constraint, GenerationRequest
from runtime_py.text.generator import TextGenerator, default_sampling
from runtime_py.text.tokenizing import encode_prompt, tokenizer_bytes
from runtime_py.tool_calls.answer import AnswerReader

Form = Callable[..., Answer]  # what an answer is to its client
_COMPLETION_TOKENS = 16  # the API's own default for completions


@dataclass(frozen=True)
class Constrained:
    """What holds the answers of a request, and who reads them."""

    constraint: Callable[[frozenset[int]], Constraint] | None = None
    shown: frozenset[str] = frozenset()
    reader: Callable[[], AnswerReader | None] = lambda: None


FREE = Constrained()


class Server:
    """The handlers of a model that generates text."""

    def __init__(
        self,
        generator: TextGenerator,
        template: Template,
        model: str,
        settings: ServeSettings,
        metrics: Metrics | None = None,
        turns: Turns | None = None,
    ) -> None:
        """metrics, turns: of the server, where it has other models beside this one."""
        self._generator, self._template, self._model, self._settings = generator, template, model, settings
        self.name, self._all_metrics = model, metrics or Metrics()
        self.metrics = self._all_metrics.of(model)
        self.scheduler = Scheduler(generator.session, generator.tokenizer, settings, turns, generator.prompt_cache)
        self._answering = Answering(generator, template)
        self._preparation = Preparation(self._answering, generator.folder, generator.context, settings.seconds)
        self._delivery = Delivery(self.scheduler, self.metrics, generator.folder)
        self._served = Served(
            model=model,
            vocabulary=generator.session.vocab_size,
            rules=generator.rules,
            ignore_unknown=settings.ignore_unknown,
            most_choices=settings.sessions + settings.queue,
            adapters=generator.session.adapters,
        )

    def handlers(self) -> dict[str, Handler]:
        """By path."""
        return {
            "/v1/completions": self._completions,
            "/v1/chat/completions": self._chat,
            "/v1/responses": self._responses,
            "/v1/embeddings": self._embeddings,
            "/v1/rerank": self._rerank,
        }

    @property
    def adapters(self) -> Sequence[str]:
        """Each is a model of its own to clients."""
        return self._generator.session.adapters

    def details(self) -> dict[str, Any]:
        """Of the list of models: the model's context, and the sampling that `chat` and the page begin with."""
        begins = default_sampling(self._generator.folder, None, None, None, 0)
        sampling = {name: getattr(begins, name) for name in ("temperature", "top_k", "top_p", "min_p")}
        return {"max_model_len": self._generator.context, "recommended_sampling": sampling}

    def load(self) -> tuple[int, int]:
        """(running, waiting) requests."""
        return self.scheduler.load()

    def guesses(self) -> tuple[int, int]:
        """(tokens guessed ahead, those of them that were right)."""
        counts = self.scheduler.speculation.counts
        return counts.guessed, counts.accepted

    def alive(self) -> bool:
        """Whether requests are still worked on."""
        return self.scheduler.alive()

    def most_bytes(self) -> int:
        """Most memory: weights, buffers, tokenizer, and a cache as long as the context for every session."""
        session, sessions = self._generator.session, self._settings.sessions
        caches = sessions * session.state_bytes(self._generator.context)
        return session.held_bytes() + caches + tokenizer_bytes(self._generator.folder)

    def application(self) -> App:
        """The ASGI application of this model alone."""
        page = chat_page if self._settings.page else None
        registry = Registry.of(self, self._all_metrics)
        return Shell(registry, self._settings, self._all_metrics, page=page).application()

    def close(self) -> None:
        """Stop working; what runs or waits fails. The template's process ends, too."""
        self._template.close()
        self._preparation.close()
        self._answering.close()
        self.scheduler.close()

    async def _rerank(self, request: Request, body: Mapping[str, Any]) -> Response:
        raise ApiError(400, f"{self._model!r} generates text; /v1/rerank needs the folder of a reranker", "model")

    async def _embeddings(self, request: Request, body: Mapping[str, Any]) -> Response:
        raise ApiError(400, f"{self._model!r} generates text; embeddings need the folder of an encoder", "model")

    async def _completions(self, request: Request, body: Mapping[str, Any]) -> Response:
        options = schema.options(body, self._served, False, _COMPLETION_TOKENS)
        prompt, generator = schema.prompt(body), self._generator
        if isinstance(prompt, str):
            make = partial(encode_prompt, generator.tokenizer, prompt, generator.most_bytes)
        else:
            make = partial(list, prompt)
        return await self._respond(request, make, options, Where("prompt"), Plan(form=options.form), chat=False)

    async def _responses(self, request: Request, body: Mapping[str, Any]) -> Response:
        asked = as_chat(body, self._settings.ignore_unknown)
        try:
            return await self._chat(request, asked.chat, partial(ResponseAnswer, asked=body))
        except ApiError as error:
            raise asked.renamed(error) from None

    async def _chat(self, request: Request, body: Mapping[str, Any], form: Form = Answer) -> Response:
        options = schema.options(body, self._served, True, None)
        messages, variables = read_messages(body, self._settings.ignore_unknown), template_variables(body)
        generator, where = self._generator, Where("messages", tuple(variables))
        try:
            plan, told, shown = self._answering.chat(messages, variables, tool_use(body), options.form)
        except InputError as error:
            raise ApiError(400, for_clients(str(error), generator.folder), where.of(str(error))) from None
        make = partial(prompt_ids, told, self._template, generator.tokenizer, shown, generator.most_bytes)
        return await self._respond(request, make, options, where, plan, chat=True, form=form)

    async def _respond(
        self,
        request: Request,
        make: Callable[[], list[int]],
        options: schema.Options,
        where: Where,
        plan: Plan,
        chat: bool,
        form: Form = Answer,
    ) -> Response:
        """make: gives the prompt's ids; it is called once the request has its places in the queue."""
        arrived = request.state.arrived
        gone = asyncio.ensure_future(disconnected(request))
        try:
            with self._places(options.choices) as places:
                ids = await self._preparation.prompt(make, gone, where)
                if ids is None:
                    return Response(status_code=499)  # nobody reads it
                end = self._answering.prompt_end(ids) if plan.reads() else ""
                grammar = await self._preparation.grammar(plan, end, gone) if plan.form or plan.asked.tools else None
                if gone.done():
                    return Response(status_code=499)
                constrained = Constrained(
                    grammar.constraint if grammar else None, plan.shown(), partial(plan.reader, end)
                )
                running = self._start(ids, options, chat, arrived, places, tenant_of(request), constrained, form)
            running.notes = request.state.notes
            if not options.stream:
                return await self._delivery.whole(gone, running)
            return await self._delivery.streamed(gone, running, options.include_usage)
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

    def _start(
        self, ids: list[int], options: schema.Options, chat: bool, arrived: float | None = None,
        places: Places | None = None, tenant: Hashable = None, constrained: Constrained = FREE,
        form: Form = Answer,
    ) -> Running:  # fmt: skip
        """arrived: on time.perf_counter(), None: now; places: those kept for the request, None: they are asked for."""
        generator, arrived = self._generator, time.perf_counter() if arrived is None else arrived
        requests = self._requests(ids, options, "messages" if chat else "prompt", constrained)
        events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        clock = Clock(self.metrics, arrived)
        listener = partial(forward, asyncio.get_running_loop(), events, clock)
        left = max(self._settings.seconds - (time.perf_counter() - arrived), 0.0)
        jobs = self.scheduler.submit(requests, listener, left, places, tenant)
        self.metrics.prompt_tokens.inc(len(ids))
        name = options.model or self._model
        first = form(name, chat, len(ids), generator.tokenizer, options.top_logprobs is not None)
        answers = [replace(first, index=i, reader=constrained.reader()) for i in range(len(jobs))]
        return Running(jobs, events, answers, arrived, clock)

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
            adapter=options.adapter,
        )
        return [replace(request, sampling=options.sampling_of(i)) for i in range(options.choices)]
