"""A model folder's graph at one of the widths that its nested codes have (export/contract/formats/nested.py).

before  NestedMatMul(X, codes, planes, codebook, scale), read from the mapped file
after   CodebookMatMul(X, codes, codebook, scale) of that width

Planes behind the width are not touched, so they are neither read nor resident. Codes of the lowest width are the bytes
of the file as they lie; wider ones are joined in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from export.artefacts.graph import Graph, Node, fresh
from export.contract.errors import InputError
from export.contract.formats.codebook import CODEBOOK_MATMUL
from export.contract.formats.nested import NESTED_MATMUL, NestedLayout

_ALIGNED = 64  # bytes that arrays in memory start at
Part = Callable[[NestedLayout, int, str, list[np.ndarray]], np.ndarray]


def widths_of(graph: Graph) -> range | None:
    """The widths that all nested codes of the graph have in common; None where there are no such codes."""
    found = [layout.widths for _, layout in _nested(graph)]
    return range(max(w.start for w in found), min(w.stop for w in found)) if found else None


def full_width(graph: Graph) -> int | None:
    """The widest of them; None where there are no nested codes."""
    widths = widths_of(graph)
    return widths.stop - 1 if widths else None


def read_at(layout: NestedLayout, width: int, part: str, arrays: list[np.ndarray]) -> np.ndarray:
    """The part of a width as its kernels read it."""
    return layout.part_at(width, part, *arrays)


def shape_at(layout: NestedLayout, width: int, part: str, arrays: list[np.ndarray]) -> np.ndarray:
    """Zeros in the shape of such a part, which take no memory: for whoever asks for sizes alone."""
    wanted = layout.at_width(width).parts()[part]
    return np.broadcast_to(np.zeros((), wanted.dtypes[-1]), wanted.shape)


def at_width(graph: Graph, bits: int | None, part: Part = read_at) -> Graph:
    """The graph with nested codes read at `bits`, None: each at its full width; itself where there are none.

    Raises InputError where there are none to be read at `bits`, or they do not have that width.
    """
    nested = {node.name: layout for node, layout in _nested(graph)}
    if not nested:
        if bits is not None:
            raise InputError(f"{graph.folder}: its codes have one width; others have folders made with --nested")
        return graph
    widths = widths_of(graph) or range(0)
    if bits is not None and bits not in widths:
        has = f"{widths.start} to {widths.stop - 1}" if widths else "no width in common"
        raise InputError(f"{graph.folder}: {bits} bits are not among the widths of its codes, {has}")
    weights, nodes = dict(graph.weights), []
    taken = graph.names()
    made: dict[tuple[object, ...], list[str]] = {}  # a matrix that several layers share is joined once
    for node in graph.nodes:
        layout = nested.get(node.name)
        if layout is None:
            nodes.append(node)
            continue
        width, given = layout.bits if bits is None else bits, node.inputs[1:]
        key = (layout, *given)
        if key not in made:
            arrays = [graph.weights.get(name, np.empty(0, np.float32)) for name in given]  # scales may be computed
            made[key] = [fresh(f"#{len(made)}.{width}.{name}", taken) for name in ("codes", "codebook")]
            for name, wanted in zip(made[key], ("codes", "codebook")):
                weights[name] = part(layout, width, wanted, arrays)
        inputs = (node.inputs[0], *made[key], given[3])
        nodes.append(
            replace(node, op_type=CODEBOOK_MATMUL, inputs=inputs, attributes=layout.at_width(width).attributes())
        )
    read = {name for node in nodes for name in node.inputs}
    gone = {name for node in graph.nodes if node.name in nested for name in node.inputs[1:]} - read
    return replace(graph, nodes=tuple(nodes), weights={n: array for n, array in weights.items() if n not in gone})


def in_memory(graph: Graph, widths: Sequence[int | None]) -> list[Graph]:
    """at_width for each of `widths`, all weights in one array in memory, where large pages serve them.

    Weights that are the same at all widths are there once. Nothing is left of the mapped file.
    """
    shapes = [at_width(graph, bits, shape_at) for bits in widths]
    sizes = {name: _aligned(array) for one in shapes for name, array in one.weights.items()}
    try:
        memory = np.empty(sum(sizes.values()) + _ALIGNED, np.uint8)
    except MemoryError:
        raise InputError(f"{graph.folder}: the weights need more memory than there is") from None
    used = -memory.ctypes.data % _ALIGNED

    def copied(array: np.ndarray) -> np.ndarray:
        nonlocal used
        copy = memory[used : used + array.nbytes].view(array.dtype).reshape(array.shape)
        used += _aligned(array)
        copy[...] = array
        copy.setflags(write=False)
        return copy

    found: list[Graph] = []
    kept: dict[str, np.ndarray] = {}
    for bits in widths:
        made = at_width(graph, bits, lambda *asked: copied(read_at(*asked)))
        for name, array in made.weights.items():
            if name not in kept:
                kept[name] = copied(array) if name in graph.weights else array
        found.append(replace(made, weights={name: kept[name] for name in made.weights}))
    return found


def _aligned(array: np.ndarray) -> int:
    return -(-array.nbytes // _ALIGNED) * _ALIGNED


def _nested(graph: Graph) -> list[tuple[Node, NestedLayout]]:
    found = []
    for node in graph.nodes:
        if node.is_product and node.op_type == NESTED_MATMUL:
            layout = node.matrix_layout()
            assert isinstance(layout, NestedLayout)
            found.append((node, layout))
    return found
