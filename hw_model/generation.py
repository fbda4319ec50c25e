"""A whole answer: a prompt of S tokens, then T tokens decoded one by one while the context grows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from export.artefacts.graph import Graph
from export.contract.errors import InputError
from export.files.foreign import foreign
from hw_model.estimate import price
from hw_model.graph_work.workload import Operation, Phase, operations
from targets import Target

_POINTS = 9  # contexts at which decode is priced; between them cost is taken to be linear


Work = Callable[[Phase], Sequence[Operation]]


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
    sequences: int = 1, later: Sequence[tuple[int, Graph]] = (),
) -> GenerationCost:  # fmt: skip
    """Cost of an answer of `answer` tokens to a prompt of `prompt` tokens. The prompt's pass gives the first token.

    sequences: as many answers, made together. later: (first step, graph) where steps have other graphs than the prompt,
    rising from step 0, the token behind the first one: the same model at other widths.

    Raises InputError for lengths below one.
    """
    if prompt < 1 or answer < 1:
        raise InputError(f"a generation needs a prompt and an answer of 1 token or more, not {prompt} and {answer}")
    steps = [(first, partial(operations, one)) for first, one in later or [(0, graph)]]
    with foreign(graph.folder / "model.onnx", "the graph is malformed"):
        return _generation(partial(operations, graph), steps, target, prompt, answer, profile, objective, sequences)


def _generation(
    work: Work, steps: Sequence[tuple[int, Work]], target: Target, prompt: int, answer: int, profile: str,
    objective: str, sequences: int,
) -> GenerationCost:  # fmt: skip
    first = Phase.of("prefill", prompt, sequences)
    prefill = price(work(first), first, target, profile, objective, ranged=False)
    last = prompt + answer - 1
    contexts: list[int] = []
    seconds: list[float] = []
    joules: list[float | None] = []
    decode_s, decode_j = 0.0, 0.0
    for i, (start, own) in enumerate(steps):
        low = prompt + 1 + start
        high = min(last, prompt + steps[i + 1][0]) if i + 1 < len(steps) else last
        if low > high:
            continue
        points = sorted({round(c) for c in np.linspace(low, high, _POINTS)})
        found = []
        for context in points:
            phase = Phase.of("decode", context, sequences)
            found.append(price(own(phase), phase, target, profile, objective, ranged=False))
        every = np.arange(low, high + 1)
        decode_s += float(np.interp(every, points, [one.latency_s for one in found]).sum())
        known = [one.energy_j for one in found if one.energy_j is not None]
        decode_j += float(np.interp(every, points, known).sum()) if len(known) == len(points) else np.nan
        contexts += points
        seconds += [one.latency_s for one in found]
        joules += [one.energy_j for one in found]
    return GenerationCost(
        target.name, prompt, answer, prefill.latency_s, decode_s, prefill.energy_j,
        None if np.isnan(decode_j) else decode_j,
        tuple(contexts), tuple(seconds), tuple(joules), sequences,
    )  # fmt: skip
