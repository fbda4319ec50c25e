"""Values of a graph that depend on its weights alone, or on a few given inputs: computed by the plain operators."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from export.contract import CODEBOOK_GATHER, DOMAIN, codebook_gather
from export.errors import InputError
from export.reader import Graph, Node
from runtime_py.operators import OPERATORS


class Folder:
    """Computes values on demand and remembers those that are constant."""

    def __init__(self, graph: Graph) -> None:
        self._constants: dict[str, np.ndarray] = dict(graph.weights)
        self._producer = {name: node for node in graph.nodes for name in node.outputs}

    def producer(self, name: str) -> Node | None:
        """The node that makes a value; None for weights and inputs."""
        return self._producer.get(name)

    def is_constant(self, name: str) -> bool:
        """Whether the value depends on weights alone and can be computed here."""
        if name in self._constants:
            return True
        node = self._producer.get(name)
        return node is not None and _can_run(node) and all(self.is_constant(i) for i in node.inputs if i)

    def constant(self, name: str) -> np.ndarray:
        """A value that depends on weights alone. Raises InputError when it does not."""
        return self._value(name, self._constants)

    def given(self, names: tuple[str, ...], inputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        """Values for these inputs; nothing of them is remembered. Raises InputError when they need another input."""
        known = {**self._constants, **inputs}
        return tuple(self._value(name, known) for name in names)

    def _value(self, name: str, known: dict[str, np.ndarray]) -> np.ndarray:
        if name not in known:
            node = self._producer.get(name)
            if node is None or not _can_run(node):
                raise InputError(f"model.onnx: {name} cannot be computed from the weights alone")
            inputs = [self._value(i, known) if i else None for i in node.inputs]
            known.update(zip(node.outputs, _run(node, inputs)))
        return known[name]


def _can_run(node: Node) -> bool:
    return node.op_type == CODEBOOK_GATHER if node.domain == DOMAIN else node.op_type in OPERATORS


def _run(node: Node, inputs: list[np.ndarray | None]) -> tuple[np.ndarray, ...]:
    if node.domain != DOMAIN:
        return OPERATORS[node.op_type](node.attributes, inputs)  # type: ignore[arg-type]
    ids, codes, book, scale = (np.asarray(i) for i in inputs)
    try:
        return (codebook_gather(ids, node.layout(), codes, book, scale),)
    except (ValueError, IndexError) as error:
        raise InputError(f"node {node.name}: {error}") from None
