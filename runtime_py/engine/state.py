"""What a text has left in the engine: its keys and values, recurrent states, and how they lie in memory."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from runtime_py.engine.layout import razor
from runtime_py.engine.layout.attention import HALF_ITEM
from runtime_py.engine.plan.values import AttentionShape
from runtime_py.reference.recurrent import Recurrent
from runtime_py.system.guard_pages import aligned_bytes

CHUNK = 256  # tokens that pass through the layers together: the codes are decoded once for all of them
CACHE_CHUNK = 256  # tokens to whose multiples a key-value cache grows
CACHE_STEP = 1024  # most tokens by which it grows beyond what is needed
_STAMPS = itertools.count()


@dataclass
class EngineState:
    """What the tokens seen so far left.

    Keys and values, one pair per attention: uint8 [kv_heads, capacity / 16, block bytes]. Blocks hold
    float16 or float32 numbers (kernels/attention/attend.py), integer codes (integer_cache.py beside it) or razored
    codes (razor_attend.py).
    """

    length: int
    capacity: int
    keys: list[np.ndarray]
    values: list[np.ndarray]
    items: tuple[tuple[int, int], ...]  # bytes of a number in each layer's keys and values; of codes without meaning
    stamp: int = -1  # changes whenever the arrays do
    recurrent: Recurrent = field(default_factory=lambda: Recurrent([]))  # as steps have them
    spare: list[np.ndarray] = field(default_factory=list)  # as large: what the next call makes them
    row: np.ndarray | None = None  # as loop/apart.py reads the state, while its arrays are the same
    adapter: str = ""  # whose terms its tokens get
    terms: int = 0  # address of their records

    def bytes(self) -> int:
        return sum(a.nbytes for a in (*self.keys, *self.values, *self.spare)) + self.recurrent.bytes()


def widen(state: EngineState, items: tuple[tuple[int, int], ...]) -> None:
    """Store as float32 what `items` says: the same numbers, so that no result changes."""
    if state.items == items:
        return
    for i, (had, wanted) in enumerate(zip(state.items, items)):
        for stored, old, new in zip((state.keys, state.values), had, wanted):
            if old != new and state.capacity:
                halfs = stored[i]
                stored[i] = aligned_bytes(2 * halfs.nbytes).reshape(*halfs.shape[:2], 2 * halfs.shape[2])
                stored[i].view(np.float32)[...] = halfs.view(np.float16)
    state.items, state.stamp, state.row = items, next(_STAMPS), None


def grow(state: EngineState, attention: Sequence[AttentionShape], total: int) -> None:
    """Make room for `total` tokens."""
    if total <= state.capacity:
        return
    # The first growth doubles, later ones add a fixed part; layer by layer, so that never two whole caches exist.
    wanted = max(total, min(2 * state.capacity, state.capacity + CACHE_STEP))
    capacity = -(-wanted // CACHE_CHUNK) * CACHE_CHUNK
    for i, shape in enumerate(attention):
        k, v = (
            aligned_bytes(size).reshape(shape.kv_heads, capacity // 16, -1)
            for size in cache_bytes(shape, capacity, state.items[i])
        )
        if state.capacity:
            k[:, : state.capacity // 16] = state.keys[i]
            v[:, : state.capacity // 16] = state.values[i]
            state.keys[i], state.values[i] = k, v
        else:
            state.keys.append(k)
            state.values.append(v)
    state.capacity, state.stamp, state.row = capacity, next(_STAMPS), None


def renewed(state: EngineState) -> None:
    """Note that the state's arrays, or its adapter, are others."""
    state.stamp, state.row = next(_STAMPS), None


def zeros(shape: tuple[int, ...]) -> np.ndarray:
    """float32 in memory of its own, as states lie."""
    array = aligned_bytes(4 * math.prod(shape)).view(np.float32).reshape(shape)
    array[...] = 0
    return array


def block_bytes(shape: AttentionShape, items: tuple[int, int]) -> tuple[int, int]:
    """Bytes of 16 cached keys and of 16 values of one head, from the bytes of a number in each."""
    if shape.coded:
        return shape.key_block, shape.value_block
    return shape.key_block * items[0] // HALF_ITEM, shape.value_block * items[1] // HALF_ITEM


def text_row(state: EngineState) -> np.ndarray:
    """A state as loop/apart.py reads it, but for PAST. Addresses are asked for once: that takes long."""
    if state.row is None:
        caches = ((keys.ctypes.data, values.ctypes.data) for keys, values in zip(state.keys, state.values))
        states = ((a.ctypes.data, b.ctypes.data) for a, b in zip(state.recurrent.arrays, state.spare))
        addresses = [address for pair in (*caches, *states) for address in pair]
        state.row = np.array([0, state.capacity, state.terms, *addresses], np.int64)
    return state.row


def swap_states(state: EngineState) -> None:
    """Let the recurrent states be those that the last call has made, and the others the place of the next; or back."""
    state.recurrent.arrays, state.spare = state.spare, state.recurrent.arrays
    if state.row is not None and state.spare:
        pairs = state.row[len(state.row) - 2 * len(state.spare) :].reshape(-1, 2)
        pairs[:] = pairs[:, ::-1].copy()


def cache_bytes(shape: AttentionShape, capacity: int, items: tuple[int, int]) -> tuple[int, int]:
    """Bytes of all cached keys and of all values of a layer."""
    keys, values = (shape.kv_heads * (capacity // 16) * size for size in block_bytes(shape, items))
    return keys, values


def scores_bytes(capacity: int, threads: int) -> int:
    """Bytes of the scores of the queries at work over a razored cache."""
    return 4 * razor.ROWS * capacity * threads


def chunk_size(left: int, most: int = CHUNK) -> int:
    """Tokens to compute together, `most` of them, when `left` are waiting; most: a multiple of 16, CHUNK at most.

    A prompt never ends in a chunk of one: a single token is summed in another order, and so the cache of a prompt
    would depend on where its chunks end, that is, on how much of it was found in an earlier request's cache.
    """
    return min(left, most) if left != most + 1 else most - 1
