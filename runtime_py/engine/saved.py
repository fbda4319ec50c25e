"""Parts of a state as bytes, and back: what runtime_py/prompt_cache keeps on disk.

A part is BLOCK tokens' keys and values: those of each attention, one after the other, as the engine's caches hold them
(uint8 [kv_heads, BLOCK / 16, block bytes]). Recurrent states are of one place only and apart from that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from runtime_py.engine.caches import Items
from runtime_py.engine.engine import Engine
from runtime_py.engine.layout.attention import FLOAT_ITEM, HALF_ITEM
from runtime_py.engine.layout.integer_cache import SCALE_BYTES
from runtime_py.engine.plan.values import AttentionShape
from runtime_py.engine.state import EngineState, block_bytes

BLOCK = 64  # tokens of a part, a multiple of the 16 of a cache's block
_ROWS = BLOCK // 16
_CODED = 16  # what a file adds to the bits of codes, which are told apart from bytes of a float by that
_FLOATS = {HALF_ITEM: np.float16, FLOAT_ITEM: np.float32}


def kinds_of(state: EngineState, engine: Engine) -> list[int]:
    """What each layer's keys and values are, as a file says it."""
    pairs = zip(engine.attention, state.items)
    return [item if shape.bits == 16 else _CODED + shape.bits for shape, pair in pairs for item in pair]


def items_of(kinds: Sequence[int], engine: Engine) -> Items:
    """A cache's items from kinds_of(). Raises ValueError for what this engine cannot have."""
    shapes = [shape for shape in engine.attention for _ in range(2)]
    if len(kinds) != len(shapes):
        raise ValueError("other layers")
    for kind, shape in zip(kinds, shapes):
        if kind not in (_FLOATS if shape.bits == 16 else (_CODED + shape.bits,)):
            raise ValueError("numbers of another kind")
    flat = [kind if kind in _FLOATS else HALF_ITEM for kind in kinds]
    return tuple(zip(flat[::2], flat[1::2]))


def part_bytes(engine: Engine, items: Items) -> int:
    """Bytes of one part."""
    return sum(math.prod(shape) for shape, _, _ in _arrays(engine, items))


def part(state: EngineState, number: int) -> bytes:
    """The part of tokens number * BLOCK to (number + 1) * BLOCK, which the state must hold."""
    rows = slice(number * _ROWS, (number + 1) * _ROWS)
    return b"".join(cache[:, rows].tobytes() for pair in zip(state.keys, state.values) for cache in pair)


def is_finite(engine: Engine, items: Items, data: bytes) -> bool:
    """Whether every number of a part is one; codes always are, their scales may not be, or negative."""
    return all(_is_good(found, item, shape) for found, item, shape in _split(engine, items, data))


def restore(
    engine: Engine, state: EngineState, adapter: str, parts: Sequence[tuple[Items, bytes]], recurrent: bytes
) -> int:
    """Make a state hold these parts, the first tokens of a text, and nothing else; how many tokens these are.

    adapter: that they were computed with. recurrent: states behind them, empty where the family has none. All must have
    the sizes that part_bytes() and recurrent_bytes() say.
    """
    engine.rewind(state, 0)
    engine.adapt(state, adapter)
    length = len(parts) * BLOCK
    engine.reserve(state, length, [items for items, _ in parts])
    for number, (items, data) in enumerate(parts):
        rows = slice(number * _ROWS, (number + 1) * _ROWS)
        for i, (found, item, shape) in enumerate(_split(engine, items, data)):
            cache, held = (state.keys, state.values)[i % 2][i // 2], state.items[i // 2][i % 2]
            if item != held and not shape.coded:  # the engine has since found that float16 is too narrow
                found = found.view(_FLOATS[item]).astype(_FLOATS[held]).view(np.uint8)
            cache[:, rows] = found
    state.length = length
    read = np.frombuffer(recurrent, np.float32)
    for array in state.recurrent.arrays:
        array[...] = read[: array.size].reshape(array.shape)
        read = read[array.size :]
    state.recurrent.forget(length)
    state.recurrent.keep()
    return length


def _is_good(found: np.ndarray, item: int, shape: AttentionShape) -> bool:
    if shape.razored:
        return True
    if shape.bits == 16:
        return bool(np.isfinite(found.view(_FLOATS[item])).all())
    scales = np.ascontiguousarray(found[..., -SCALE_BYTES:]).view(np.float32)
    return bool((np.isfinite(scales) & (scales >= 0)).all())


def _arrays(engine: Engine, items: Items) -> Iterator[tuple[tuple[int, int, int], int, AttentionShape]]:
    """(shape in bytes, item, attention) of each cache's piece of a part."""
    for shape, sizes, pair in zip(engine.attention, map(block_bytes, engine.attention, items), items):
        for size, item in zip(sizes, pair):
            yield (shape.kv_heads, _ROWS, size), item, shape


def _split(engine: Engine, items: Items, data: bytes) -> Iterator[tuple[np.ndarray, int, AttentionShape]]:
    place = 0
    for sizes, item, shape in _arrays(engine, items):
        size = math.prod(sizes)
        yield np.frombuffer(data, np.uint8, size, place).reshape(sizes), item, shape
        place += size
