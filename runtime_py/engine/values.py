"""What the planner knows of values: tokens in a buffer, activations not computed yet, masks, stored matrices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from export.reader import Graph
from runtime_py.engine.plan import Buffer, Place
from runtime_py.folding import Folder


class Unplannable(Exception):
    """The graph holds something the compiled machine has no step for."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """A float32 value [tokens, width] in a buffer, rows `stride` floats apart, starting `column` floats in."""

    buffer: Buffer
    width: int
    stride: int
    column: int = 0
    rotation: tuple[str, str] | None = None  # names of cos and sin that are still to be applied
    heads: int = 1  # parts of the width that a norm treats one by one

    @property
    def place(self) -> Place:
        return Place(self.buffer, 4 * self.column)


@dataclass(frozen=True)
class Pending:
    """An activation not computed yet: it is fused with the gate that follows. kind -1: a bare sigmoid."""

    kind: int
    source: Tokens


@dataclass(frozen=True)
class AttentionShape:
    """What the key-value cache of one attention node needs."""

    name: str
    heads: int
    kv_heads: int
    head_dim: int
    key_block: int  # bytes of 16 cached keys of one head, as float16 or razored
    value_block: int
    razored: bool = False


def stored_rows(folder: Folder, graph: Graph, name: str) -> np.ndarray:
    """The matrix [N, K] whose transpose is `name`, without a float32 copy where the file holds float16 rows."""
    node = folder.producer(name)
    if node is not None and node.op_type == "Transpose" and list(node.attributes["perm"]) == [1, 0]:
        inner = node.inputs[0]
        cast = folder.producer(inner)
        if cast is not None and cast.op_type == "Cast" and cast.inputs[0] in graph.weights:
            inner = cast.inputs[0]
        rows = folder.constant(inner)
        if rows.dtype in (np.float16, np.float32):
            return np.ascontiguousarray(rows)
    return np.ascontiguousarray(folder.constant(name).T, dtype=np.float32)


def window_of_mask(folder: Folder, mask: str) -> int:
    """Keys a query may see by the mask our exporter builds (export/decoder.py); 0 for all."""
    allowed_types = {"And", "LessOrEqual", "Less", "Sub", "Range", "Unsqueeze", "Squeeze", "Shape", "Cast"}
    limits, seen, waiting = [], set(), [mask]
    while waiting:
        node = folder.producer(waiting.pop())
        if node is None or node.name in seen:
            continue
        seen.add(node.name)
        if node.op_type not in allowed_types:
            raise Unplannable(f"{node.op_type} in the attention mask")
        if node.op_type == "Less":
            limits.append(int(folder.constant(node.inputs[1])))
        waiting += node.inputs
    if len(limits) > 1 or any(limit < 1 for limit in limits):
        raise Unplannable("the attention mask")
    return limits[0] if limits else 0


def _made_of(folder: Folder, name: str, allowed: frozenset[str]) -> bool:
    """Whether a value is computed by these operators alone, from inputs and constants."""
    waiting, seen = [name], set()
    while waiting:
        node = folder.producer(waiting.pop())
        if node is None or node.name in seen:
            continue
        seen.add(node.name)
        if node.op_type not in allowed:
            return False
        waiting += node.inputs
    return bool(seen)


def mask_hides_padding_only(folder: Folder, mask: str) -> bool:
    """The mask of an encoder (export/encoder.py): without padding, every token sees every token."""
    return _made_of(folder, mask, frozenset({"Expand", "Concat", "Shape", "Unsqueeze", "Cast"}))


def counts_positions(folder: Folder, ids: str) -> bool:
    """The positions of an encoder (export/encoder.py): 0, 1, ... for a text without padding."""
    counted = frozenset({"Max", "Sub", "CumSum"})
    return _made_of(folder, ids, frozenset({"Unsqueeze", "Range", "Squeeze", "Shape"})) or _made_of(
        folder, ids, counted
    )
