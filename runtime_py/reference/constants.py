"""Values of a graph that depend on its weights alone, or on a few given inputs: computed by the plain operators."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from export.artefacts.graph import Graph, Node
from export.contract.errors import InputError
from export.contract.formats.base import DOMAIN
from export.contract.formats.codebook import CODEBOOK_GATHER, codebook_gather
from runtime_py.reference.operators import OPERATORS, run_operator


class ConstantFolder:
    """Computes values on demand and remembers those that are constant."""

    def __init__(self, graph: Graph) -> None:
        self._constants: dict[str, np.ndarray] = dict(graph.weights)
        self._producer = {name: node for node in graph.nodes for name in node.outputs}
        self._foldable = set(self._constants)
        for node in graph.nodes:  # in the order of computation
            if _can_run(node) and all(name in self._foldable for name in node.inputs if name):
                self._foldable.update(node.outputs)

    def producer(self, name: str) -> Node | None:
        """The node that makes a value; None for weights and inputs."""
        return self._producer.get(name)

    def is_constant(self, name: str) -> bool:
        """Whether the value depends on weights alone and can be computed here."""
        return name in self._foldable

    def arrays(self) -> list[np.ndarray]:
        """The weights, and what has been computed from them alone."""
        return [*self._constants.values()]

    def constant(self, name: str) -> np.ndarray:
        """A value that depends on weights alone. Raises InputError when it does not."""
        return self._value(name, self._constants)

    def given(self, names: tuple[str, ...], inputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        """Values for these inputs; nothing of them is remembered. Raises InputError when they need another input."""
        known = {**self._constants, **inputs}
        return tuple(self._value(name, known) for name in names)

    def _value(self, name: str, known: dict[str, np.ndarray]) -> np.ndarray:
        waiting = [name]  # a stack, not recursion: a chain may be as long as the graph
        while waiting:
            node = self._producer.get(waiting[-1])
            if waiting[-1] in known:
                waiting.pop()
                continue
            if node is None or not _can_run(node):
                raise InputError(f"model.onnx: {waiting[-1]} cannot be computed from the weights alone")
            missing = [i for i in node.inputs if i and i not in known]
            if missing:
                waiting += missing
                continue
            known.update(zip(node.outputs, _run(node, [known[i] if i else None for i in node.inputs])))
            if waiting[-1] not in known:
                raise InputError(f"node {node.name}: gives fewer outputs than it names")
        return known[name]


def _can_run(node: Node) -> bool:
    return node.op_type == CODEBOOK_GATHER if node.domain == DOMAIN else node.op_type in OPERATORS


def _run(node: Node, inputs: list[np.ndarray | None]) -> tuple[np.ndarray, ...]:
    if node.domain != DOMAIN:
        return run_operator(node.op_type, node.name, node.attributes, inputs)  # type: ignore[arg-type]
    ids, codes, book, scale = (np.asarray(i) for i in inputs)
    try:
        return (codebook_gather(ids, node.layout(), codes, book, scale),)
    except (ValueError, IndexError) as error:
        raise InputError(f"node {node.name}: {error}") from None
