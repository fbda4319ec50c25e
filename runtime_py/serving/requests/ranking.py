"""A request of `/v1/rerank`, in the form of Jina's and Cohere's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runtime_py.serving.requests import fields
from runtime_py.serving.requests.errors import ApiError
from runtime_py.serving.requests.values import integer, optional, text

_MAX_DOCUMENTS = 2048  # of one request, as many as texts of `/v1/embeddings`


@dataclass(frozen=True)
class Ranking:
    """What is asked: the best of the documents for the query. shown: with their texts."""

    query: str
    documents: list[str]
    most: int
    shown: bool


def ranking(body: Mapping[str, Any], ignore_unknown: bool) -> Ranking:
    """Raises ApiError naming the field that is wrong, not supported or not known."""
    fields.check(body, fields.RERANK, ignore_unknown)
    documents = _documents(body, ignore_unknown)
    most = integer(body, "top_n", len(documents), 1, 2**31) or len(documents)
    return Ranking(_query(body), documents, most, optional(body, "return_documents", bool, False))


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
