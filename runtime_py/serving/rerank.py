"""`/v1/rerank` over a reranker folder, in the form of Jina's and Cohere's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from runtime_py.serving.models.service import Handler
from runtime_py.serving.one_by_one import Together
from runtime_py.serving.operating.metrics import Metrics
from runtime_py.serving.requests import fields
from runtime_py.serving.requests.errors import ApiError
from runtime_py.serving.requests.schema import check_model
from runtime_py.serving.requests.values import integer, optional, text
from runtime_py.serving.settings import ServeSettings
from runtime_py.serving.states_service import StatesService
from runtime_py.serving.turns import Turns
from runtime_py.text.reranker import Reranker, relevance

Pair = tuple[list[int], list[int]]  # ids and segments
_MAX_DOCUMENTS = 2048  # of one request, as many as texts of `/v1/embeddings`


class RerankServer(StatesService):
    """The handlers of a model that scores documents."""

    def __init__(
        self, reranker: Reranker, model: str, settings: ServeSettings, metrics: Metrics | None = None,
        turns: Turns | None = None,
    ) -> None:  # fmt: skip
        """As StatesService."""
        super().__init__(reranker, model, settings, metrics, turns)
        self._reranker = reranker

    def handlers(self) -> dict[str, Handler]:
        """By path."""
        others = ("/v1/embeddings", "/v1/completions", "/v1/chat/completions", "/v1/responses")
        return {"/v1/rerank": self._rerank, **dict.fromkeys(others, self._not_here)}

    async def _not_here(self, request: Request, body: Mapping[str, Any]) -> Response:
        raise ApiError(400, f"{self.name!r} is a reranker: it scores documents, at /v1/rerank alone", "model")

    async def _rerank(self, request: Request, body: Mapping[str, Any]) -> Response:
        check_model(body, self.name)
        fields.check(body, fields.RERANK, self._settings.ignore_unknown)
        query, documents = _query(body), _documents(body, self._settings.ignore_unknown)
        most = integer(body, "top_n", len(documents), 1, 2**31)
        shown = optional(body, "return_documents", bool, False)

        def read(number: int) -> Pair:
            return self._reranker.encode_pair(query, documents[number])

        work = Together(len(documents), read, self._groups, self._scores)
        found = await self._queue.results(request, "documents", work)
        if found is None:
            return Response(status_code=499)  # nobody reads it
        tokens = sum(count for _, count in found)
        self.metrics.prompt_tokens.inc(tokens)
        request.state.notes["prompt_tokens"] = tokens
        results: list[dict[str, Any]] = []
        for i in sorted(range(len(found)), key=lambda i: (-found[i][0], i))[:most]:
            results.append({"index": i, "relevance_score": relevance(found[i][0])})
            if shown:
                results[-1]["document"] = {"text": documents[i]}
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        answer = {"object": "list", "model": self.name, "results": results, "usage": usage}
        return JSONResponse(answer)

    def _groups(self, pairs: list[Pair]) -> list[list[int]]:
        return self._reranker.groups([len(ids) for ids, _ in pairs])

    def _scores(self, pairs: list[Pair]) -> list[tuple[float, int]]:
        """Score and number of tokens of each."""
        return [(score, len(ids)) for score, (ids, _) in zip(self._reranker.scores_together(pairs), pairs)]


def _query(body: Mapping[str, Any]) -> str:
    if not isinstance(body.get("query"), str):
        raise ApiError(400, "query must be a text", "query")
    return text(body["query"], "query")


def _documents(body: Mapping[str, Any], ignore_unknown: bool) -> list[str]:
    """The texts of `documents`, given as such or as objects with a `text`. Raises ApiError."""
    given = body.get("documents")
    if not isinstance(given, list) or not 1 <= len(given) <= _MAX_DOCUMENTS:
        raise ApiError(400, f"documents must be a list of 1 to {_MAX_DOCUMENTS} texts", "documents")
    found = []
    for number, item in enumerate(given):
        where = f"documents[{number}]"
        if isinstance(item, dict):
            fields.check(item, fields.DOCUMENT, ignore_unknown, f"{where}.")
            item = item.get("text")
        if not isinstance(item, str):
            raise ApiError(400, f"{where} must be a text, or an object with a text", where)
        found.append(text(item, where))
    return found
