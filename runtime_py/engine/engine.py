"""A planned model folder: weights mapped, buffers allocated once, one compiled call a token on a pool of threads."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from export.artefacts.graph import Graph
from export.contract.errors import InputError, NotFiniteError
from runtime_py.engine.caches import Caches, Items, capacity
from runtime_py.engine.given import Given
from runtime_py.engine.layout.attention import FLOAT_ITEM, HALF_ITEM
from runtime_py.engine.layout.products import MOST_TOKENS
from runtime_py.engine.objects.wanted import Wanted
from runtime_py.engine.plan.adapters import RECORDS
from runtime_py.engine.plan.values import AttentionShape
from runtime_py.engine.program import Program
from runtime_py.engine.records.call import PAST
from runtime_py.engine.records.claims import Case
from runtime_py.engine.rotations import Rotations
from runtime_py.engine.state import (
    CACHE_CHUNK,
    CHUNK,
    EngineState,
    chunk_size,
    renewed,
    scores_bytes,
    swap_states,
    text_row,
)
from runtime_py.engine.terms import Terms
from runtime_py.engine.walk import plan_decoder
from runtime_py.reference.recurrent import EVERY
from runtime_py.reference.stepping import Stepped, token_by_token
from runtime_py.system.finite import checked_logits
from runtime_py.system.guard_pages import aligned_bytes, result_array, settled
from runtime_py.system.memory import held_bytes


class Engine:
    """Runs one model folder with int8 activations. Several states can share it; calls take turns."""

    def __init__(
        self,
        graph: Graph,
        threads: int | None = None,
        processors: Sequence[int] = (),
        terms: Terms | None = None,
        cache_bits: int = 16,
        bits: int | None = None,
    ) -> None:
        """threads: None for all processors. processors: numbers of those that keep one thread each; empty for none.
        terms: the adapters that a state can have. cache_bits: of each cached key and value, 16, 8 or 4. bits: at which
        nested codes were read, below their full width; None: all of them.

        Raises Unplannable when the graph has something this cannot run.
        """
        self._terms = terms or Terms()
        self.adapters = self._terms.names
        self.cache_bits, self.bits = cache_bits, bits
        planned = plan_decoder(graph, CHUNK, self._terms.slots, cache_bits)
        self._folder = planned.folder
        self._attention = planned.attention
        self._states = planned.held
        self.vocab_size = planned.result_width
        self._rotations = Rotations(planned, checked=bool(self._attention))
        calls = ((1, False, HALF_ITEM), (CHUNK, False, FLOAT_ITEM), (CHUNK, True, HALF_ITEM))
        cases = [Case(tokens, last_only, CACHE_CHUNK, item, 1) for tokens, last_only, item in calls]
        given = Given(self.vocab_size, self._attention, self._states, self._rotations.heads, self._terms)
        self._program = Program(planned, given.promises, cases, threads, processors, texts=True)
        limits = self._program.limits
        self._lookup_rows, self._position_rows = limits.get("input_ids", 0), limits.get("position_ids")
        self._table = self._program.table
        self._bound = -1  # stamp of the state whose cache is in the step table
        self._ids, self._positions = settled(np.zeros(CHUNK, np.int64)), settled(np.zeros(CHUNK, np.int64))
        self._table.set("input_ids", self._ids.ctypes.data)
        self._table.set("position_ids", self._positions.ctypes.data)
        self._lock = threading.Lock()
        self.instruction_set = self._program.instruction_set
        self.threads = self._program.threads
        self.bytes_per_token = self._program.bytes_per_token
        self._keeps_scores = any(shape.razored or shape.paged for shape in self._attention)
        self._scores: np.ndarray | None = None  # of the queries at work, where attention keeps them in memory
        self._caches = Caches(self._attention, self._states, self._table)
        self._layers = settled(np.full(len(self._table.steps), -1, np.int64))  # whose cache or state a step has
        pairs = [f"keys.{i}" for i in range(len(self._attention))]
        for i, name in enumerate((*pairs, *(f"past_state.{i}" for i in range(len(self._states))))):
            for row, _ in self._table.externals.get(name, ()):
                self._layers[row] = i

    def wanted(self) -> list[Wanted]:
        """The objects of all kinds of calls that the engine can have."""
        kinds = ["plain", "apart"] if self._program.takes_apart else ["plain"]
        return list(dict.fromkeys(one for kind in kinds for one in self._program.wanted(kind)))

    @property
    def cache_bytes_per_token(self) -> int:
        """Bytes of one token's keys and values."""
        return self._caches.bytes_per_token

    @property
    def attention(self) -> tuple[AttentionShape, ...]:
        """What the caches of each attention are made for."""
        return self._caches.attention

    @property
    def recurrent_bytes(self) -> int:
        """Bytes of the recurrent states of one text."""
        return self._caches.recurrent_bytes

    def reserve(self, state: EngineState, total: int, items: Sequence[Items]) -> None:
        """Let a state hold `total` tokens, of numbers as wide as all of `items` at least."""
        with self._lock:
            for more in items:
                self._caches.widen(more)
            self._caches.fit(state, total)

    def widen_as(self, other: Engine) -> None:
        """Keep cached numbers at least as wide as another engine of the folder does; they take turns at a state."""
        if other._caches.items != self._caches.items:
            with self._lock:
                self._caches.widen(other._caches.items)

    def arrays(self) -> list[np.ndarray]:
        """Weights, tables and buffers."""
        return [*self._folder.arrays(), *self._program.arrays(), *self._rotations.tables]

    def held_bytes(self) -> int:
        """What they take."""
        return held_bytes(self.arrays())

    def state_bytes(self, tokens: int) -> int:
        """Most that a state of so many tokens takes, with what the engine keeps beside it for so many."""
        room = capacity(tokens)
        scores = scores_bytes(room, self.threads) if self._keeps_scores else 0
        return self._caches.bytes(tokens) + self._rotations.bytes(room) + scores

    def new_state(self) -> EngineState:
        """An empty key-value cache, and states of zeros."""
        return self._caches.new(self._terms.address(""))

    def adapt(self, state: EngineState, adapter: str) -> None:
        """Give the tokens to come this adapter's terms ("": none). A state with others has to be empty.

        Raises InputError on one that is not loaded.
        """
        if adapter != state.adapter:
            assert state.length == 0, "a cache of another adapter"
            state.terms, state.adapter = self._terms.address(adapter), adapter
            renewed(state)

    def rewind(self, state: EngineState, length: int) -> int:
        """Forget all but the first `length` tokens; how many are left, which recurrent states may make fewer."""
        state.length = state.recurrent.cut(length)
        return state.length

    def forward(self, state: EngineState, tokens: np.ndarray | Sequence[int], last_only: bool = False) -> np.ndarray:
        """Append tokens (int [T], T >= 1) to the state and return their logits, float32 [T or 1, vocabulary].

        Raises InputError on a token outside the vocabulary, an empty input, or positions the model has no row for;
        NotFiniteError on logits that are no numbers. The state is then as long as before.
        """
        ids = np.ascontiguousarray(tokens, dtype=np.int64).reshape(-1)
        if ids.size == 0:
            raise InputError("the prompt is empty: at least one token is needed")
        total = state.length + ids.size
        refusal = self._refusal(total, (int(ids.min()), int(ids.max())))
        if refusal is not None:
            raise refusal
        logits = result_array((1 if last_only else ids.size, self.vocab_size))
        with self._lock:
            state.recurrent.check(state.length)
            before = state.recurrent.saved() if chunk_size(ids.size) < ids.size else None
            self._caches.fit(state, total)
            start = 0
            while start < ids.size:
                part = ids[start : start + chunk_size(ids.size - start)]
                out = logits if last_only else logits[start : start + part.size]
                self._run(state, part, out, last_only)
                start += part.size
                if part.size > 1 or state.length % EVERY == 0:
                    state.recurrent.keep()
            state.length = total - ids.size
            try:
                checked_logits(logits)
            except NotFiniteError:
                self._undo(state, before)
                raise
            state.length = total
        return logits

    @property
    def most_together(self) -> int:
        """Tokens of one text that one call of advance() computes in one pass over the weights; 1: one by one.

        Recurrent states are of one place only: what was guessed wrongly could not be taken back.
        """
        return MOST_TOKENS if self._program.takes_apart and not self._states else 1

    def step(self, states: Sequence[EngineState], tokens: Sequence[int]) -> list[Stepped]:
        """Append one token to each of several states: the logits of each, float32 [vocabulary], or why there are none.

        They are those of forward() for that token alone, to the bit, but every weight is read once for all of them.
        No two states may be the same.
        """
        return [rows[0] for rows in self.advance(states, [[token] for token in tokens])]

    def advance(self, states: Sequence[EngineState], runs: Sequence[Sequence[int]]) -> list[list[Stepped]]:
        """Append a run of tokens to each of several states: logits float32 [vocabulary] of each token of each run.

        They are those of forward() token by token, to the bit, but weights are read once for MOST_TOKENS tokens. A
        run ends at the first token that has none, with why; the state is then as long as before that token. No two
        states may be the same; no run is empty, or longer than `most_together` where that is above 1.
        """
        total = sum(map(len, runs))
        if not self._program.takes_apart or total == 1 or (self._states and total > len(runs)):
            return token_by_token(self, states, runs)
        found: list[list[Stepped]] = []
        start = 0
        while start < len(runs):
            stop, total = start, 0
            while stop < len(runs) and total + len(runs[stop]) <= MOST_TOKENS:
                total += len(runs[stop])
                stop += 1
            found += self._advance(states[start:stop], runs[start:stop])
            start = stop
        return found

    def _advance(self, states: Sequence[EngineState], runs: Sequence[Sequence[int]]) -> list[list[Stepped]]:
        cut = [self._allowed(state, run) for state, run in zip(states, runs)]
        good = [(state, run) for state, (run, _) in zip(states, cut) if len(run)]
        logits = result_array((sum(len(run) for _, run in good), self.vocab_size))
        if good:
            with self._lock:
                self._run_apart([state for state, _ in good], [run for _, run in good], logits)
                for state, _ in good if self._states else ():
                    swap_states(state)
        found: list[list[Stepped]] = []
        start = 0
        for state, (run, refusal) in zip(states, cut):
            rows: list[Stepped] = []
            for row in logits[start : start + len(run)]:
                try:
                    rows.append(checked_logits(row[None])[0])
                except NotFiniteError as error:
                    rows.append(error)
                    self._undo(state, None)
                    break
                state.length += 1
                self._note(state)
            else:
                rows += [] if refusal is None else [refusal]
            start += len(run)
            found.append(rows)
        return found

    def _note(self, state: EngineState) -> None:
        """A token has been appended."""
        state.recurrent.length = state.length
        if state.length % EVERY == 0:
            state.recurrent.keep()

    def _allowed(self, state: EngineState, run: Sequence[int]) -> tuple[Sequence[int], InputError | None]:
        """The tokens of a run up to the first that cannot be computed, and why it cannot."""
        for i, token in enumerate(run):
            refusal = self._refusal(state.length + i + 1, [token])
            if refusal is not None:
                return run[:i], refusal
        return run, None

    def _run_apart(self, states: list[EngineState], runs: list[Sequence[int]], logits: np.ndarray) -> None:
        places = np.concatenate([np.arange(len(run)) + state.length for state, run in zip(states, runs)])
        self._ids[: len(places)] = [token for run in runs for token in run]
        self._positions[: len(places)] = places
        self._table.set("result", logits.ctypes.data)
        self._rotations.reach(int(places.max()) + 1, self._table)
        while True:
            for state, run in zip(states, runs):
                state.recurrent.check(state.length)
                self._caches.fit(state, state.length + len(run))
            self._bind(states[0])  # the bytes of a cached number are those of all
            self._make_room_for_scores(max(state.capacity for state in states))
            texts = settled(np.stack([text_row(state) for state, run in zip(states, runs) for _ in run]))
            texts[:, PAST] = places
            self._program.run_apart(texts, self._layers)
            if not self._caches.found_overflow():
                return

    def _refusal(self, total: int, ids: Sequence[int]) -> InputError | None:
        """Why these tokens, the last of `total`, cannot be computed."""
        if min(ids) < 0 or max(ids) >= self._lookup_rows:
            return InputError(f"token {max(ids)} lies outside the vocabulary of {self._lookup_rows}")
        if self._position_rows is not None and total > self._position_rows:
            return InputError(f"{total} tokens exceed the model's {self._position_rows} positions")
        return None

    def _undo(self, state: EngineState, before: list[np.ndarray] | None) -> None:
        """Take back a call that ended badly. before: the recurrent states before it, None for a call of one chunk."""
        recurrent = state.recurrent
        if before is None:
            swap_states(state)
        else:
            for array, saved in zip(recurrent.arrays, before):
                array[...] = saved
        recurrent.forget(state.length)

    def _run(self, state: EngineState, ids: np.ndarray, logits: np.ndarray, last_only: bool) -> None:
        tokens, past = ids.size, state.length
        self._ids[:tokens] = ids
        self._positions[:tokens] = np.arange(past, past + tokens)
        self._table.set("result", logits.ctypes.data)
        self._rotations.reach(past + tokens, self._table)
        while True:
            if self._bound != state.stamp:
                self._bind(state)
            for i, (before, after) in enumerate(zip(state.recurrent.arrays, state.spare)):
                self._table.set(f"past_state.{i}", before.ctypes.data)
                self._table.set(f"present_state.{i}", after.ctypes.data)
            self._program.run(tokens, past, last_only)
            if not self._caches.found_overflow():
                break
            self._caches.fit(state, past + tokens)
        state.length += tokens
        swap_states(state)
        state.recurrent.length = state.length

    def _bind(self, state: EngineState) -> None:
        """Put the addresses of this state's cache into the step table."""
        self._table.set("capacity", state.capacity)
        self._table.set(RECORDS, state.terms)
        self._make_room_for_scores(state.capacity)
        for i, (keys, values) in enumerate(zip(state.keys, state.values)):
            self._table.set(f"keys.{i}", keys.ctypes.data)
            self._table.set(f"values.{i}", values.ctypes.data)
            self._table.set(f"key_item.{i}", state.items[i][0])
            self._table.set(f"value_item.{i}", state.items[i][1])
        self._bound = state.stamp

    def _make_room_for_scores(self, capacity: int) -> None:
        """Where attention keeps scores in memory, let it have room for so many positions."""
        if not self._keeps_scores:
            return
        size = scores_bytes(capacity, self.threads)
        if self._scores is None or self._scores.nbytes < size:
            self._scores = aligned_bytes(size)
        self._table.set("scores", self._scores.ctypes.data)
        self._table.set("longest", capacity)
