"""Runs a reranker folder: a query and a document in, their score out. Pairs are packed, not padded (encoder.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from export.contract.errors import InputError, NotFiniteError
from export.files.access import read_json
from export.graph.archs._tasks import is_scoring
from runtime_py.engine.encoder import Ids
from runtime_py.text.encoder import SCORES, StatesModel
from runtime_py.text.tokenizing import encode


def is_reranker(folder: Path) -> bool:
    """Whether config.json is that of a reranker. Raises InputError when it is missing."""
    return is_scoring(read_json(folder / "config.json"))


def relevance(score: float) -> float:
    """The score as a number from 0 to 1: 1 / (1 + exp(-score))."""
    return 1 / (1 + math.exp(-score)) if score >= 0 else math.exp(score) / (1 + math.exp(score))


class Reranker(StatesModel):
    """A model that scores how well documents answer a query."""

    def __init__(self, folder: str | Path, activations: str = "int8", threads: int | None = None) -> None:
        """As StatesModel."""
        super().__init__(folder, SCORES, activations, threads)
        self.score_ids([0])  # what the graph makes is looked at before anyone waits

    def scores(self, query: str, documents: Sequence[str]) -> list[float]:
        """One score for each document, unbounded. Raises InputError as encode_pair() and score_ids() do."""
        return [self.score_ids(*self.encode_pair(query, document)) for document in documents]

    def encode_pair(self, query: str, document: str) -> tuple[list[int], list[int]]:
        """Token ids and segments of the pair, as the tokenizer puts two texts together.

        Raises InputError where it has no tokens, or more than the model reads.
        """
        told = f"query and document have more than the {self.limit} tokens that the model reads"
        if sum(len(text.encode(errors="replace")) for text in (query, document)) > self._most_bytes:
            raise InputError(told)  # not worth tokenizing
        encoding = encode(self.tokenizer, (query, document))
        if not encoding.ids:
            raise InputError("query and document are empty: at least one token is needed")
        if encoding.overflowing:
            raise InputError(told)
        return encoding.ids, encoding.type_ids

    def score_ids(self, ids: Sequence[int], segments: Sequence[int] | None = None) -> float:
        """The score of one sequence of tokens.

        Raises InputError on ids or a length it cannot read, NotFiniteError on a score that is no number.
        """
        return self._score(self.states(ids, segments))

    def scores_together(self, pairs: Sequence[Ids]) -> list[float]:
        """score_ids() of each of a group of pairs (groups()), to the bit. Raises as it does."""
        return [self._score(states) for states in self.states_together(pairs)]

    def _score(self, states: np.ndarray) -> float:
        found = self.value(states)
        if found.shape != (1, 1) or found.dtype != np.float32:
            raise InputError(f"model.onnx: does not make one of {SCORES} for one text")
        if not np.isfinite(found).all():
            raise NotFiniteError("the model gives a score that is NaN or infinite: its weights or sums exceed float32")
        return float(found[0, 0])
