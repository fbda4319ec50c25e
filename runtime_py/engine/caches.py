"""Keys, values and recurrent states of all texts of an engine: how wide cached numbers are, and room for them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from runtime_py.engine.layout.attention import FLOAT_ITEM, HALF_ITEM
from runtime_py.engine.plan.values import AttentionShape
from runtime_py.engine.state import CACHE_CHUNK, CACHE_STEP, EngineState, block_bytes, cache_bytes, grow, widen, zeros
from runtime_py.engine.steps.table import StepTable
from runtime_py.reference.recurrent import MOST_BYTES, Recurrent
from runtime_py.system.guard_pages import settled

Items = tuple[tuple[int, int], ...]  # bytes of a number in each layer's keys and values


class Caches:
    """`attention`: what each cache is made for; `states`: shapes of recurrent ones; `items`: see EngineState."""

    def __init__(
        self, attention: Sequence[AttentionShape], states: Sequence[tuple[int, ...]], table: StepTable
    ) -> None:
        self.attention, self.states = tuple(attention), tuple(states)
        self.items: Items = ((HALF_ITEM, HALF_ITEM),) * len(attention)  # wider where float16 was once too narrow
        self._overflow = settled(np.zeros((len(attention), 2), np.int64))  # of keys and values, by layer
        for i, row in enumerate(self._overflow):
            table.set(f"overflow.{i}", row.ctypes.data)
        self._fits = self._overflow.tobytes()  # compared for every token: any() takes ten times as long

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token's keys and values."""
        return sum(a.kv_heads * sum(block_bytes(a, items)) for a, items in zip(self.attention, self.items)) // 16

    @property
    def recurrent_bytes(self) -> int:
        """Bytes of the recurrent states of one text."""
        return sum(4 * math.prod(shape) for shape in self.states)

    def bytes(self, tokens: int) -> int:
        """Most that a text of so many tokens takes."""
        caches = sum(sum(cache_bytes(a, capacity(tokens), items)) for a, items in zip(self.attention, self.items))
        states = self.recurrent_bytes
        return caches + (2 * states + max(MOST_BYTES, states) if states else 0)

    def new(self, terms: int) -> EngineState:
        """An empty cache, and states of zeros. terms: address of an adapter's."""
        arrays, spare = ([zeros(shape) for shape in self.states] for _ in range(2))
        return EngineState(0, 0, [], [], self.items, recurrent=Recurrent(arrays), spare=spare, terms=terms)

    def fit(self, state: EngineState, total: int) -> None:
        """Let a state hold `total` tokens, of numbers as wide as any text had."""
        widen(state, self.items)
        grow(state, self.attention, total)

    def widen(self, items: Items) -> None:
        """Keep numbers at least as wide as `items` says, in what fit() sees from now on."""
        if items != self.items:
            self.items = tuple((max(k, a), max(v, b)) for (k, v), (a, b) in zip(self.items, items))

    def found_overflow(self) -> bool:
        """Whether some cache of float16 was too narrow: it holds float32 from now on, and the tokens pass again."""
        if self._overflow.tobytes() == self._fits:
            return False
        self.widen(tuple((FLOAT_ITEM if k else 0, FLOAT_ITEM if v else 0) for k, v in self._overflow.tolist()))
        self._overflow[:] = 0
        return True


def capacity(tokens: int) -> int:
    """Positions that a cache of so many tokens may have room for: it grows ahead."""
    return -(-(tokens + CACHE_STEP) // CACHE_CHUNK) * CACHE_CHUNK
