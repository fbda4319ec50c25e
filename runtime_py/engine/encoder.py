"""An encoder on the compiled machine: a text's tokens pass together, keys and values live for that text only."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from export.artefacts.graph import Graph
from export.contract.errors import InputError
from runtime_py.engine.given import always
from runtime_py.engine.layout.attention import FLOAT_ITEM, HALF_ITEM
from runtime_py.engine.plan.adapters import RECORDS
from runtime_py.engine.program import Program
from runtime_py.engine.records.claims import Case
from runtime_py.engine.rotations import put_rotation, rotations_below
from runtime_py.engine.terms import Terms
from runtime_py.engine.verify.verifier import Promise, Promises
from runtime_py.engine.walk import plan_encoder
from runtime_py.system.guard_pages import aligned_bytes, result_array, settled
from runtime_py.system.memory import held_bytes

Ids = tuple[Sequence[int], "Sequence[int] | None"]  # of a text, and its segments


class EncoderEngine:
    """States of all tokens of one text, with int8 activations; calls take turns."""

    def __init__(
        self, graph: Graph, states: str, limit: int, threads: int | None = None, terms: Terms | None = None
    ) -> None:
        """states: the output to compute. limit: most tokens of a text. terms: the adapters that a text can have.

        Raises Unplannable.
        """
        if threads is not None and not 1 <= threads <= 1024:
            raise InputError(f"--threads must be 1 to 1024, not {threads}")
        self.limit = -(-limit // 16) * 16
        self._terms = terms or Terms()
        planned = plan_encoder(graph, self.limit, states, self._terms.slots)
        self._folder, self._attention = planned.folder, planned.attention
        self._rotations = rotations_below(planned, self.limit)
        self._width = planned.result_width
        calls = ((1, HALF_ITEM), (self.limit, FLOAT_ITEM))
        cases = [Case(tokens, False, self.limit, item, 1) for tokens, item in calls]
        self._program = Program(planned, self._promises, cases, threads)
        limits = self._program.limits
        self._rows = limits.get("input_ids", 0)
        self._longest = min(limits.get("position_ids", self.limit), self.limit)
        table = self._program.table
        self._ids = settled(np.zeros(self.limit, np.int64))
        positions = self._positions = settled(np.arange(self.limit, dtype=np.int64))
        self._segments, self._kinds = settled(np.zeros(self.limit, np.int64)), limits.get("token_type_ids", 1)
        given = {"input_ids": self._ids, "position_ids": positions, "token_type_ids": self._segments}
        for name, array in given.items():
            table.set(name, array.ctypes.data)
        table.set("capacity", self.limit)
        for number, (cos, sin) in enumerate(self._rotations):
            put_rotation(table, number, cos, sin)
        self._overflow = settled(np.zeros(2, np.int64))  # of keys and values of any layer
        self._cache = self._new_cache(HALF_ITEM)
        self._lock = threading.Lock()
        self.instruction_set, self.threads = self._program.instruction_set, self._program.threads

    def _promises(self, threads: int) -> Promises:
        """What is set before the first text, and for each text its result. All layers share one cache."""
        memory = {n: Promise(lambda case: 8 * self.limit) for n in ("input_ids", "position_ids", "token_type_ids")}
        memory["result"] = Promise(lambda case: 4 * self._width * case.tokens, ready=False, result=True)
        memory[RECORDS] = self._terms.promise()
        keys = Promise(lambda case: self._cache_bytes(case.item)[0], ready=False)
        values = Promise(lambda case: self._cache_bytes(case.item)[1], ready=False)
        overflow = Promise(lambda case: 16)
        numbers: dict[str, Callable[[Case], int]] = {"capacity": lambda case: case.capacity}
        for i in range(len(self._attention)):
            memory |= {f"keys.{i}": keys, f"values.{i}": values, f"overflow.{i}": overflow}
            numbers |= {f"{name}_item.{i}": lambda case: case.item for name in ("key", "value")}
        for i, (cos, _) in enumerate(self._rotations):
            memory |= {f"{name}.{i}": Promise(partial(always, cos.nbytes)) for name in ("cos", "sin")}
            numbers[f"half.{i}"] = partial(always, cos.shape[1])
        return Promises(memory, numbers)

    def held_bytes(self) -> int:
        """Weights, tables and buffers."""
        return held_bytes([*self._folder.arrays(), *self._program.arrays(), *self._cache, *sum(self._rotations, ())])

    def _cache_bytes(self, item: int) -> tuple[int, int]:
        """Bytes of the keys and of the values of any layer."""
        blocks = self.limit // 16 * item // HALF_ITEM
        keys = max((s.kv_heads * s.key_block * blocks for s in self._attention), default=64)
        return keys, max((s.kv_heads * s.value_block * blocks for s in self._attention), default=64)

    def _new_cache(self, item: int) -> list[np.ndarray]:
        """One cache with which all layers take turns: each is done with it before the next one writes.

        item: bytes of a cached number (kernels/attention/attend.py).
        """
        cache = [aligned_bytes(size) for size in self._cache_bytes(item)]
        places = {
            "keys": cache[0].ctypes.data, "values": cache[1].ctypes.data, "key_item": item, "value_item": item,
            "overflow": self._overflow.ctypes.data,
        }  # fmt: skip
        for i in range(len(self._attention)):
            for name, value in places.items():
                self._program.table.set(f"{name}.{i}", value)
        return cache

    def states(self, ids: Sequence[int], segments: Sequence[int] | None = None, adapter: str = "") -> np.ndarray:
        """float32 [tokens, hidden]. segments: of each token; None: all of the first one.
        adapter: whose terms are added.

        Raises InputError on ids or segments that the model has no row for, more than there is room for, or an adapter
        that is not loaded.
        """
        tokens, kinds = self._checked(ids, segments)
        out, terms = result_array((tokens.size, self._width)), self._terms.address(adapter)
        with self._lock:
            self._program.table.set(RECORDS, terms)
            self._segments[: tokens.size] = kinds
            self._ids[: tokens.size] = tokens
            self._compute(out, lambda: self._program.run(tokens.size, 0, False))
        return out

    def groups(self, lengths: Sequence[int]) -> list[list[int]]:
        """The numbers of texts to compute together, given how many tokens each has: as many as the buffers hold."""
        found: list[list[int]] = []
        left = 0
        for number in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
            takes = -(-lengths[number] // 16) * 16
            if not self._program.takes_packed or lengths[number] < 2 or takes > left:
                found.append([])
                left = self.limit
            found[-1].append(number)
            left = left - takes if lengths[number] > 1 else 0
        return found

    def states_together(self, texts: Sequence[Ids], adapter: str = "") -> list[np.ndarray]:
        """states() of each of a group of texts, given as (ids, segments): the same bits. Raises InputError."""
        if len(texts) == 1:
            return [self.states(*texts[0], adapter)]
        terms = self._terms.address(adapter)
        checked = [self._checked(*text) for text in texts]
        lengths = [ids.size for ids, _ in checked]
        rooms = [-(-length // 16) * 16 for length in lengths]
        assert min(lengths) > 1 and sum(rooms) <= self.limit
        firsts, bases = np.cumsum([0, *lengths]), np.cumsum([0, *rooms])
        rows = settled(np.stack([firsts[:-1], lengths, bases[:-1]], axis=1).astype(np.int64))
        local = np.concatenate([np.arange(length) for length in lengths])
        places = settled(np.stack([local, local + np.repeat(bases[:-1], lengths)], axis=1).astype(np.int64))
        total = int(firsts[-1])
        out = result_array((total, self._width))
        with self._lock:
            self._program.table.set(RECORDS, terms)
            for array, parts in ((self._ids, 0), (self._segments, 1)):
                array[:total] = np.concatenate([text[parts] for text in checked])
            self._positions[:total] = local
            try:
                self._compute(out, lambda: self._program.run_packed(rows, places))
            finally:
                self._positions[:] = np.arange(self.limit)
        return [out[first : first + length] for first, length in zip(firsts.tolist(), lengths)]

    def _compute(self, out: np.ndarray, run: Callable[[], None]) -> None:
        self._program.table.set("result", out.ctypes.data)
        run()
        if self._overflow.any():  # float16 is too narrow for this text: float32 from now on
            self._overflow[:] = 0
            self._cache = self._new_cache(FLOAT_ITEM)
            run()

    def _checked(self, ids: Sequence[int], segments: Sequence[int] | None) -> tuple[np.ndarray, np.ndarray]:
        """Ids and segments as arrays. Raises InputError as states() does."""
        tokens = np.asarray(ids, np.int64)
        if not 1 <= tokens.size <= self._longest:
            raise InputError(f"the text has {tokens.size} tokens; the model reads 1 to {self._longest}")
        if int(tokens.min()) < 0 or int(tokens.max()) >= self._rows:
            raise InputError(f"token {int(tokens.max())} lies outside the vocabulary of {self._rows}")
        kinds = np.zeros(tokens.size, np.int64) if segments is None else np.asarray(segments, np.int64)
        if kinds.shape != tokens.shape or int(kinds.min()) < 0 or int(kinds.max()) >= self._kinds:
            raise InputError(f"a token is of a segment that the model does not have; it has {self._kinds}")
        return tokens, kinds
