"""What the work of a node is counted from: shapes in one pass, weights of the file, and who makes a value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from export.artefacts.graph import Graph, Node
from export.contract.errors import InputError
from hw_model.graph_work.operation import ACTIVATION_BYTES, Phase


@dataclass
class Context:
    """What the nodes of one graph have in common during one forward pass."""

    graph: Graph
    phase: Phase
    constant: dict[str, frozenset[str]] = field(default_factory=dict)  # values of weights alone: of which
    stored: dict[str, int] = field(default_factory=dict)  # bytes of a weight in the file
    makers: dict[str, Node] = field(default_factory=dict)  # the node that makes a value

    @staticmethod
    def of(graph: Graph, phase: Phase) -> Context:
        # int64 initializers are indices and shapes, not weights
        stored = {name: array.nbytes for name, array in graph.weights.items() if array.dtype != np.int64}
        makers = {name: node for node in graph.nodes for name in node.outputs}
        return Context(graph, phase, {name: frozenset((name,)) for name in graph.weights}, stored, makers)

    def shape(self, name: str) -> tuple[int, ...]:
        """Raises InputError when the file does not state it."""
        info = self.graph.values.get(name)
        if info is None or info.shape is None:
            raise InputError(
                f"model.onnx: the shape of {name!r} is not stated; run ONNX shape inference on the file first"
            )
        sizes = {
            "batch_size": self.phase.sequences,
            "sequence_length": self.phase.tokens,
            "past_sequence_length": self.phase.past,
            "total_sequence_length": self.phase.total,
        }
        found = [_size(dim, sizes) if isinstance(dim, str) else dim for dim in info.shape]
        if None in found:
            raise InputError(f"model.onnx: dimension {info.shape[found.index(None)]!r} of {name!r} is unknown")
        return tuple(size for size in found if size is not None)

    def elements(self, name: str) -> int:
        return math.prod(self.shape(name))

    def made(self, node: Node) -> int:
        """Elements of the first output; those of its inputs together where the file does not state its shape."""
        info = self.graph.values.get(node.outputs[0])
        if info is not None and info.shape is not None:
            return self.elements(node.outputs[0])
        return math.prod(np.broadcast_shapes(*(self.shape(name) for name in self.dynamic(node))))

    def dynamic(self, node: Node) -> list[str]:
        """Inputs that are not constant."""
        return [name for name in node.inputs if name and name not in self.constant]

    def weights(self, node: Node) -> frozenset[str]:
        """Weights of the file that its inputs are made of."""
        return frozenset[str]().union(*(self.constant.get(name, ()) for name in node.inputs))

    def weight_bytes(self, node: Node) -> int:
        return sum(self.stored.get(name, 0) for name in self.weights(node))

    def moved(self, node: Node) -> int:
        """Bytes of activations read and written."""
        return ACTIVATION_BYTES * (self.made(node) + sum(self.elements(name) for name in self.dynamic(node)))


def _size(dim: str, sizes: Mapping[str, int]) -> int | None:
    """A dimension by its name, or by that and a number to be added; None where it is unknown."""
    name, _, more = dim.partition(" + ")
    known = sizes.get(name)
    if not more or known is None:
        return known
    return known + int(more) if more.isascii() and more.isdigit() and len(more) < 10 else None
