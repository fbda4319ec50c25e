"""The OpenAI-compatible `/v1/embeddings` over an encoder folder. One text at a time is computed, the others wait."""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from export.contract.errors import InputError, NotFiniteError
from runtime_py.serving.guard import App
from runtime_py.serving.requests import fields
from runtime_py.serving.requests.errors import ApiError, for_clients
from runtime_py.serving.requests.schema import check_model
from runtime_py.serving.requests.values import integer, optional
from runtime_py.serving.settings import ServeSettings
from runtime_py.serving.shell import Shell, disconnected, json_object
from runtime_py.text.encoder import TextEncoder

_MAX_TEXTS = 2048  # of one request, as in the API


class EmbeddingServer:
    """The routes of a model that makes vectors."""

    def __init__(self, encoder: TextEncoder, model: str, settings: ServeSettings) -> None:
        self._encoder, self._model, self._settings = encoder, model, settings
        self._worker = ThreadPoolExecutor(1, "athena-encoder")  # the kernels have one pool of threads
        self._closed = threading.Event()
        self._waiting = 0  # requests, the running one included; touched by the event loop only
        self._typical = 0.1  # seconds a request took, a running mean
        self._shell = Shell(model, settings, lambda: not self._closed.is_set(), self.load)

    def application(self) -> App:
        """The ASGI application."""
        return self._shell.application(
            [
                Route("/v1/embeddings", self._embeddings, methods=["POST"]),
                Route("/v1/completions", self._no_text, methods=["POST"]),
                Route("/v1/chat/completions", self._no_text, methods=["POST"]),
            ]
        )

    def load(self) -> tuple[int, int]:
        """(running, waiting) requests."""
        return min(self._waiting, 1), max(self._waiting - 1, 0)

    def close(self) -> None:
        """Stop after the current text."""
        self._closed.set()
        self._worker.shutdown(wait=True, cancel_futures=True)

    async def _no_text(self, request: Request) -> Response:
        raise ApiError(400, f"{self._model!r} is an encoder: it makes embeddings and no text", "model")

    async def _embeddings(self, request: Request) -> Response:
        body = json_object(await request.body())
        check_model(body, self._model)
        fields.check(body, fields.EMBEDDINGS, self._settings.ignore_unknown)
        form = _form(body)
        width = self._encoder.width
        if integer(body, "dimensions", width, 1, 2**31) != width:
            raise ApiError(400, f"dimensions must be {width}, the model's own", "dimensions")
        texts = _inputs(body)
        if self._waiting > self._settings.queue:
            wait = min(max(round(self._typical * self._waiting), 1), 60)
            raise ApiError(429, "too many requests are waiting", code="queue_full", retry_after=wait)
        self._waiting += 1
        try:
            found = await self._compute(request, texts)
        finally:
            self._waiting -= 1
        if found is None:
            return self._shell.count(request, Response(status_code=499))  # nobody reads it
        vectors, tokens = found
        self._shell.metrics.prompt_tokens.inc(tokens)
        data = [{"object": "embedding", "index": i, "embedding": form(v)} for i, v in enumerate(vectors)]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        answer = {"object": "list", "data": data, "model": self._model, "usage": usage}
        return self._shell.count(request, JSONResponse(answer))

    async def _compute(self, request: Request, texts: list[str | list[int]]) -> tuple[list[np.ndarray], int] | None:
        """Vectors and the number of tokens; None when the client went away."""
        started = time.monotonic()
        deadline, gone = started + self._settings.seconds, asyncio.ensure_future(disconnected(request))
        vectors: list[np.ndarray] = []
        tokens = 0
        loop = asyncio.get_running_loop()
        try:
            for number, text in enumerate(texts):
                work = loop.run_in_executor(self._worker, partial(self._one, text))
                left = max(deadline - time.monotonic(), 0)
                waiting: set[asyncio.Future[Any]] = {gone, work}
                await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                if gone.done():
                    work.cancel()
                    return None
                if not work.done():
                    work.cancel()
                    raise ApiError(504, "the time limit passed before the answer was complete", code="timeout")
                try:
                    vector, count = work.result()
                except InputError as error:
                    told = for_clients(str(error), self._encoder.folder)
                    raise ApiError(400, f"input {number}: {told}", "input") from None
                except NotFiniteError as error:
                    raise ApiError(500, f"input {number}: {error}") from None
                vectors.append(vector)
                tokens += count
        finally:
            gone.cancel()
        self._typical += 0.1 * (time.monotonic() - started - self._typical)
        return vectors, tokens

    def _one(self, text: str | list[int]) -> tuple[np.ndarray, int]:
        ids = self._encoder.encode(text, cut=False) if isinstance(text, str) else text
        return self._encoder.embed_ids(ids), len(ids)


def _form(body: Mapping[str, Any]) -> Any:
    """How a vector is written: a list of numbers, or float32 little-endian in base64."""
    form = optional(body, "encoding_format", str, "float")
    if form == "base64":
        return lambda vector: base64.b64encode(vector.astype("<f4").tobytes()).decode()
    if form != "float":
        raise ApiError(400, "encoding_format must be float or base64", "encoding_format")
    return lambda vector: vector.tolist()


def _inputs(body: Mapping[str, Any]) -> list[str | list[int]]:
    """One text or token list, or several. Raises ApiError."""
    value = body.get("input")
    if isinstance(value, str) or (isinstance(value, list) and value and all(type(i) is int for i in value)):
        value = [value]
    if not isinstance(value, list) or not value or len(value) > _MAX_TEXTS:
        raise ApiError(400, f"input must be a text, or a list of 1 to {_MAX_TEXTS} texts", "input")
    for item in value:
        ids = isinstance(item, list) and item and all(type(i) is int for i in item)
        if not ids and not (isinstance(item, str) and _is_text(item)):
            raise ApiError(400, "input holds something that is neither a text nor a list of token ids", "input")
    return value


def _is_text(value: str) -> bool:
    """Not half of a surrogate pair, which no tokenizer takes."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
