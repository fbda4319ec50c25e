"""A whole answer: a prompt of S tokens, then T tokens decoded one by one while the context grows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from export.artefacts.reader import Graph
from export.contract.errors import InputError
from export.files.foreign import foreign
from hw_model.estimate import price
from hw_model.graph_work.workload import Operation, Phase, operations
from targets import Target

_POINTS = 9  # contexts at which decode is priced; between them cost is taken to be linear


@dataclass(frozen=True)
class GenerationCost:
    """Totals of one answer. Energy is None where the target has no figure."""

    target: str
    prompt: int
    answer: int
    prefill_s: float  # until the first token
    decode_s: float  # for the others
    prefill_j: float | None
    decode_j: float | None
    contexts: tuple[int, ...]  # at which decode was priced
    token_s: tuple[float, ...]  # latency of a token of each sequence there
    token_j: tuple[float | None, ...]
    sequences: int = 1  # answers that are made together

    @property
    def seconds(self) -> float:
        return self.prefill_s + self.decode_s

    @property
    def joules(self) -> float | None:
        return None if self.prefill_j is None or self.decode_j is None else self.prefill_j + self.decode_j

    @property
    def tokens_per_s(self) -> float:
        """Tokens of all answers over the whole time."""
        return self.answer * self.sequences / self.seconds

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "seconds": self.seconds, "joules": self.joules, "tokens_per_s": self.tokens_per_s}


def generation(
    graph: Graph, target: Target, prompt: int, answer: int, profile: str = "rtl", objective: str = "latency",
    sequences: int = 1,
) -> GenerationCost:  # fmt: skip
    """Cost of an answer of `answer` tokens to a prompt of `prompt` tokens. The prompt's pass gives the first token.

    sequences: as many answers, made together.

    Raises InputError for lengths below one.
    """
    if prompt < 1 or answer < 1:
        raise InputError(f"a generation needs a prompt and an answer of 1 token or more, not {prompt} and {answer}")
    with foreign(graph.folder / "model.onnx", "the graph is malformed"):
        return _generation(
            lambda phase: operations(graph, phase), target, prompt, answer, profile, objective, sequences
        )


def _generation(
    work: Callable[[Phase], Sequence[Operation]], target: Target, prompt: int, answer: int, profile: str,
    objective: str, sequences: int,
) -> GenerationCost:  # fmt: skip
    first = Phase.of("prefill", prompt, sequences)
    prefill = price(work(first), first, target, profile, objective, ranged=False)
    last = prompt + answer - 1
    contexts = sorted({round(c) for c in np.linspace(prompt + 1, last, _POINTS)}) if answer > 1 else []
    seconds: list[float] = []
    joules: list[float | None] = []
    for context in contexts:
        phase = Phase.of("decode", context, sequences)
        found = price(work(phase), phase, target, profile, objective, ranged=False)
        seconds.append(found.latency_s)
        joules.append(found.energy_j)
    every = np.arange(prompt + 1, last + 1)
    decode_s = float(np.interp(every, contexts, seconds).sum()) if contexts else 0.0
    known = [j for j in joules if j is not None]
    decode_j = (
        (float(np.interp(every, contexts, known).sum()) if contexts else 0.0) if len(known) == len(joules) else None
    )
    return GenerationCost(
        target.name, prompt, answer, prefill.latency_s, decode_s, prefill.energy_j, decode_j,
        tuple(contexts), tuple(seconds), tuple(joules), sequences,
    )  # fmt: skip
