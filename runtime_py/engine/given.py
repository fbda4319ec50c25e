"""What a decoder's steps are given before every call, as the verifier is told of it: memory by name, and numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from runtime_py.engine.plan.adapters import RECORDS
from runtime_py.engine.plan.values import AttentionShape
from runtime_py.engine.records.claims import Case
from runtime_py.engine.state import CHUNK, cache_bytes, scores_bytes
from runtime_py.engine.terms import Terms
from runtime_py.engine.verify.verifier import Promise, Promises


@dataclass(frozen=True)
class Given:
    """By what the sizes go. states: shapes of recurrent ones; heads: columns of those that each rotation turns."""

    vocab_size: int
    attention: Sequence[AttentionShape]
    states: Sequence[Sequence[int]]
    heads: Sequence[int]
    terms: Terms

    def promises(self, threads: int) -> Promises:
        """What the engine sets before every call."""
        ids = Promise(lambda case: 8 * CHUNK)
        rows = Promise(
            lambda case: 4 * self.vocab_size * (1 if case.last_only else case.tokens), ready=False, result=True
        )
        scores = Promise(lambda case: scores_bytes(case.capacity, threads), ready=False)
        memory = {"input_ids": ids, "position_ids": Promise(ids.size), "result": rows, "scores": scores}
        memory[RECORDS] = self.terms.promise()
        numbers: dict[str, Callable[[Case], int]] = {
            "capacity": lambda case: case.capacity,
            "longest": lambda case: case.capacity,
        }
        for i, shape in enumerate(self.attention):
            for k, name in enumerate(("keys", "values")):
                memory[f"{name}.{i}"] = Promise(partial(_cached, shape, k), ready=False)
                numbers[f"{name[:-1]}_item.{i}"] = lambda case: case.item
            memory[f"overflow.{i}"] = Promise(lambda case: 16)
        for i, sizes in enumerate(self.states):
            held = partial(always, 4 * math.prod(sizes))
            memory |= {f"past_state.{i}": Promise(held), f"present_state.{i}": Promise(held, ready=False)}
        for i, head_dim in enumerate(self.heads):
            numbers[f"half.{i}"] = partial(always, head_dim // 2)
            memory |= {f"{name}.{i}": Promise(partial(_angles, head_dim // 2)) for name in ("cos", "sin")}
        return Promises(memory, numbers)


def always(number: int, case: Case) -> int:
    """The number, whatever the call."""
    return number


def _cached(shape: AttentionShape, which: int, case: Case) -> int:
    return cache_bytes(shape, case.capacity, (case.item, case.item))[which]


def _angles(half: int, case: Case) -> int:
    return 4 * half * case.capacity
