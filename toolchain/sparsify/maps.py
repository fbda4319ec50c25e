"""Where a sparse model looks: the shares it expects pages to have, beside those that dense attention gives them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from export.artefacts.graph import Node
from export.contract.operators.sparse_attention import SPARSE_ATTENTION, SparseLayout, page_means
from export.contract.pages import PAGE
from runtime_py.reference.session import Session, State

_CELLS = 32  # of a map, in either direction
_LAYERS = 4  # whose maps are kept
_MOST_TOKENS = 2048
_MOST_BYTES = 1 << 28  # of the scores of a layer


class _Watched(Session):
    """The interpreter, which keeps the maps of some layers."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        sparse = [node.name for node in self.graph.nodes if node.op_type == SPARSE_ATTENTION]
        wanted = np.unique(np.linspace(0, len(sparse) - 1, min(_LAYERS, len(sparse))).round().astype(int))
        self.heads = max(node.attributes["q_num_heads"] for node in self.graph.nodes if node.name in sparse)
        self.numbers = {sparse[number]: int(number) for number in wanted}
        self.maps: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def _attend(self, node: Node, inputs: list[Any], state: State) -> np.ndarray:
        out = super()._attend(node, inputs, state)
        number = self.numbers.get(node.name)
        if number is not None:
            keys = state.keys[node.name][:, : state.length + inputs[0].shape[1]]
            layout = SparseLayout.of(node.attributes, inputs[0].shape[2])
            query = inputs[0].reshape(-1, layout.kv_heads, layout.heads // layout.kv_heads, layout.head_dim)
            self.maps[number] = page_maps(query.transpose(1, 2, 0, 3), keys, layout)
        return out


def page_maps(query: np.ndarray, keys: np.ndarray, layout: SparseLayout) -> tuple[np.ndarray, np.ndarray]:
    """Two maps, float32 [cells, cells], of a text from its beginning: queries downwards, pages to the right.

    query: float32 [kv_heads, repeat, T, D]. keys: float32 [kv_heads, T, D]. The first has the share that a query
    expects a page to have by the mean of its keys, the second what dense attention gives to the page's keys; means over
    heads. Only whole pages behind the query's own are in either; a row of a map is a query at the end of its cell.
    """
    tokens = keys.shape[1]
    means = page_means(keys)
    pages = means.shape[1]
    cells = min(_CELLS, pages)
    maps = np.zeros((2, cells, cells), np.float32)
    cell_of = np.arange(pages) * cells // pages
    for row in range(cells):
        position = (row + 1) * tokens // cells - 1
        whole = position // PAGE
        if whole == 0:
            continue
        q = query[:, :, position] * np.float32(layout.scale)  # [kv_heads, repeat, D]
        expected = _shares(q @ means[:, :whole].transpose(0, 2, 1)).mean(axis=(0, 1))
        given = _shares(q @ keys[:, : position + 1].transpose(0, 2, 1)).mean(axis=(0, 1))
        given = given[: whole * PAGE].reshape(whole, PAGE).sum(axis=1)
        for of, shares in zip(maps, (expected, given)):
            np.add.at(of[row], cell_of[:whole], shares)
    return maps[0], maps[1]


def _shares(scores: np.ndarray) -> np.ndarray:
    power = np.exp(scores - scores.max(axis=-1, keepdims=True))
    found: np.ndarray = power / power.sum(axis=-1, keepdims=True)
    return found


def maps_of(folder: Path, tokens: np.ndarray) -> dict[str, Any] | None:
    """The maps of some layers over the beginning of a text, int64 [n], as the report has them.

    None where there is too little memory: the interpreter holds the weights and a layer's scores as float32.
    """
    try:
        session = _Watched(folder)
        some = tokens[: min(_MOST_TOKENS, math.isqrt(_MOST_BYTES // (4 * session.heads)))]
        session.forward(session.new_state(), some, last_only=True)
    except MemoryError:
        return None
    found = sorted(session.maps.items())
    expected, given = ([np.round(maps[i], 4).tolist() for _, maps in found] for i in (0, 1))
    return {"tokens": len(some), "layers": [number for number, _ in found], "expected": expected, "attention": given}
