"""The OpenAI-compatible `/v1/embeddings` over an encoder folder."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from export.contract.errors import InputError
from runtime_py.serving.models.service import Handler
from runtime_py.serving.one_by_one import Together
from runtime_py.serving.operating.metrics import Metrics
from runtime_py.serving.requests import fields
from runtime_py.serving.requests.adapters import asked_model
from runtime_py.serving.requests.errors import ApiError
from runtime_py.serving.requests.values import integer, optional
from runtime_py.serving.settings import ServeSettings
from runtime_py.serving.states_service import StatesService
from runtime_py.serving.turns import Turns
from runtime_py.text.encoder import TextEncoder

_MAX_TEXTS = 2048  # of one request, as in the API


class EmbeddingServer(StatesService):
    """The handlers of a model that makes vectors."""

    def __init__(
        self, encoder: TextEncoder, model: str, settings: ServeSettings, metrics: Metrics | None = None,
        turns: Turns | None = None,
    ) -> None:  # fmt: skip
        """As StatesService."""
        super().__init__(encoder, model, settings, metrics, turns)
        self._encoder = encoder

    @property
    def adapters(self) -> Sequence[str]:
        """Each is a model of its own to clients."""
        return self._encoder.adapters

    def handlers(self) -> dict[str, Handler]:
        """By path."""
        others = ("/v1/rerank", "/v1/completions", "/v1/chat/completions", "/v1/responses")
        return {"/v1/embeddings": self._embeddings, **dict.fromkeys(others, self._no_text)}

    async def _no_text(self, request: Request, body: Mapping[str, Any]) -> Response:
        raise ApiError(400, f"{self.name!r} is an encoder: it makes embeddings, no text and no scores", "model")

    async def _embeddings(self, request: Request, body: Mapping[str, Any]) -> Response:
        model, adapter = asked_model(body, self.name, self.adapters)
        fields.check(body, fields.EMBEDDINGS, self._settings.ignore_unknown)
        form = _form(body)
        width = self._encoder.width
        if integer(body, "dimensions", width, 1, 2**31) != width:
            raise ApiError(400, f"dimensions must be {width}, the model's own", "dimensions")
        texts, prompt = _inputs(body), optional(body, "prompt_name", str, None)
        try:
            self._encoder.prompted("", prompt)
        except InputError as error:
            raise ApiError(400, str(error), "prompt_name") from None
        work = Together(
            len(texts),
            lambda i: self._ids(texts[i], prompt),
            self._groups,
            lambda group: self._together(group, adapter),
        )
        found = await self._queue.results(request, "input", work)
        if found is None:
            return Response(status_code=499)  # nobody reads it
        vectors, tokens = [vector for vector, _ in found], sum(count for _, count in found)
        self.metrics.prompt_tokens.inc(tokens)
        request.state.notes["prompt_tokens"] = tokens
        data = [{"object": "embedding", "index": i, "embedding": form(v)} for i, v in enumerate(vectors)]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        answer = {"object": "list", "data": data, "model": model, "usage": usage}
        return JSONResponse(answer)

    def _ids(self, text: str | list[int], prompt: str | None) -> list[int]:
        """Token ids are taken as they are, without a prompt."""
        return self._encoder.encode(text, cut=False, prompt=prompt) if isinstance(text, str) else text

    def _groups(self, texts: list[list[int]]) -> list[list[int]]:
        return self._encoder.groups([len(ids) for ids in texts])

    def _together(self, texts: list[list[int]], adapter: str) -> list[tuple[np.ndarray, int]]:
        """Vector and number of tokens of each."""
        return list(zip(self._encoder.embed_together(texts, adapter), map(len, texts)))


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
