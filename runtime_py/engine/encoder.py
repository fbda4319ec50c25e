"""An encoder on the compiled machine: a text's tokens pass together, keys and values live for that text only."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from export.errors import InputError
from export.reader import Graph
from runtime_py.engine.attention import FLOAT_ITEM, HALF_ITEM
from runtime_py.engine.fence import aligned_bytes, settled
from runtime_py.engine.planner import Planner
from runtime_py.engine.program import Program
from runtime_py.engine.values import Unplannable


class EncoderEngine:
    """States of all tokens of one text, with int8 activations; calls take turns."""

    def __init__(self, graph: Graph, states: str, limit: int, threads: int | None = None) -> None:
        """states: the output to compute. limit: most tokens of a text. Raises Unplannable."""
        if threads is not None and not 1 <= threads <= 1024:
            raise InputError(f"--threads must be 1 to 1024, not {threads}")
        self.limit = -(-limit // 16) * 16
        planner = Planner(graph, self.limit)
        planner.plan_encoder(states)
        if not planner.vocab_size or planner.rotations:
            raise Unplannable("an encoder without a vocabulary, or with rotations")
        self._rows, self._positions_there = planner.vocab_size, planner.position_rows
        self._width = planner.result_width
        self._program = Program(planner, threads)
        plan = self._program.plan
        self._ids = settled(np.zeros(self.limit, np.int64))
        positions = settled(np.arange(self.limit, dtype=np.int64))
        segments = settled(np.zeros(self.limit, np.int64))
        for name, array in (("input_ids", self._ids), ("position_ids", positions), ("token_type_ids", segments)):
            plan.set(name, array.ctypes.data)
        plan.set("capacity", self.limit)
        self._attention = planner.attention
        self._overflow = settled(np.zeros(2, np.int64))  # of keys and values of any layer
        self._cache = self._new_cache(HALF_ITEM)
        self._alive = (positions, segments)
        self._lock = threading.Lock()
        self.instruction_set, self.threads = self._program.instruction_set, self._program.threads

    def _new_cache(self, item: int) -> list[np.ndarray]:
        """One cache with which all layers take turns: each is done with it before the next one writes.

        item: bytes of a cached number (attention.py).
        """
        blocks = self.limit // 16 * item // HALF_ITEM
        keys = max((s.kv_heads * s.key_block * blocks for s in self._attention), default=64)
        values = max((s.kv_heads * s.value_block * blocks for s in self._attention), default=64)
        cache = [aligned_bytes(keys), aligned_bytes(values)]
        places = {
            "keys": cache[0].ctypes.data, "values": cache[1].ctypes.data, "key_item": item, "value_item": item,
            "overflow": self._overflow.ctypes.data,
        }  # fmt: skip
        for i in range(len(self._attention)):
            for name, value in places.items():
                self._program.plan.set(f"{name}.{i}", value)
        return cache

    def states(self, ids: Sequence[int]) -> np.ndarray:
        """float32 [tokens, hidden]. Raises InputError on ids outside the vocabulary, or more than there is room for."""
        tokens = np.asarray(ids, np.int64)
        if not 1 <= tokens.size <= min(self.limit, self._positions_there or self.limit):
            raise InputError(f"the text has {tokens.size} tokens; the model reads 1 to {self.limit}")
        if int(tokens.min()) < 0 or int(tokens.max()) >= self._rows:
            raise InputError(f"token {int(tokens.max())} lies outside the vocabulary of {self._rows}")
        out = np.empty((tokens.size, self._width), np.float32)
        with self._lock:
            self._ids[: tokens.size] = tokens
            self._program.plan.set("result", out.ctypes.data)
            self._program.run(tokens.size, 0, False)
            if self._overflow.any():  # float16 is too narrow for this text: float32 from now on
                self._overflow[:] = 0
                self._cache = self._new_cache(FLOAT_ITEM)
                self._program.run(tokens.size, 0, False)
        return out
