"""`/v1/rerank` over a reranker folder, in the form of Jina's and Cohere's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from runtime_py.serving.models.service import Handler
from runtime_py.serving.one_by_one import Together
from runtime_py.serving.operating.metrics import Metrics
from runtime_py.serving.requests.errors import ApiError
from runtime_py.serving.requests.ranking import ranking
from runtime_py.serving.requests.schema import check_model
from runtime_py.serving.settings import ServeSettings
from runtime_py.serving.states_service import StatesService
from runtime_py.serving.turns import Turns
from runtime_py.text.reranker import Reranker, relevance

Pair = tuple[list[int], list[int]]  # ids and segments


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
        asked = ranking(body, self._settings.ignore_unknown)
        query, documents = asked.query, asked.documents

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
        for i in sorted(range(len(found)), key=lambda i: (-found[i][0], i))[: asked.most]:
            results.append({"index": i, "relevance_score": relevance(found[i][0])})
            if asked.shown:
                results[-1]["document"] = {"text": documents[i]}
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        answer = {"object": "list", "model": self.name, "results": results, "usage": usage}
        return JSONResponse(answer)

    def _groups(self, pairs: list[Pair]) -> list[list[int]]:
        return self._reranker.groups([len(ids) for ids, _ in pairs])

    def _scores(self, pairs: list[Pair]) -> list[tuple[float, int]]:
        """Score and number of tokens of each."""
        return [(score, len(ids)) for score, (ids, _) in zip(self._reranker.scores_together(pairs), pairs)]
