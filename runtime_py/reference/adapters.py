"""Adapters' terms on numpy arrays, beside the interpreter's products and norms: slow and obvious."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from export.adapters.factors import Factors
from export.adapters.sites import Site
from export.adapters.store import NO_ACTIVATION, Adapter
from export.artefacts.graph import Node
from export.contract.errors import InputError
from runtime_py.reference.interpreter import AddTo
from runtime_py.reference.operators import run_operator

_OPERATORS: dict[str, tuple[str, dict[str, str]]] = {
    "relu": ("Relu", {}),
    "gelu": ("Gelu", {}),
    "gelu_tanh": ("Gelu", {"approximate": "tanh"}),
    "tanh": ("Tanh", {}),
    "sigmoid": ("Sigmoid", {}),
}


def activated(name: str, x: np.ndarray) -> np.ndarray:
    """One of ACTIVATIONS (export/adapters/store.py) of float32 numbers."""
    if name == NO_ACTIVATION:
        return x
    if name == "silu":
        return x * activated("sigmoid", x)
    operator, attributes = _OPERATORS[name]
    (found,) = run_operator(operator, "", attributes, [x])
    return found


class ReferenceTerms:
    """The terms of some adapters at the products of one graph."""

    def __init__(self, adapters: Sequence[Adapter] = (), sites: Sequence[Site] = ()) -> None:
        """sites: of the graph. Every term has one, of its size."""
        self.names = tuple(adapter.name for adapter in adapters)
        self._terms: dict[str, dict[str, Factors]] = {"": {}} | {
            one.name: {
                site.node: one.terms[site.module]
                for site in sites
                if site.module in one.terms and site.place == one.terms[site.module].place
            }
            for one in adapters
        }
        self._activations = {"": NO_ACTIVATION} | {one.name: one.activation for one in adapters}

    def adding(self, adapter: str) -> AddTo:
        """What adds this adapter's terms to the outputs of nodes ("": none). Raises InputError on one not loaded."""
        terms = self._terms.get(adapter)
        if terms is None:
            raise InputError(f"adapter {adapter[:100]!r} is not loaded; {', '.join(self.names) or 'none'} is")

        def add_to(node: Node, inputs: list[Any], outputs: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
            term = terms.get(node.name)
            if term is None:
                return outputs
            a, b = term.floats()
            if term.biases is None:
                return (outputs[0] + (inputs[0] @ a.T) @ b,)
            between = activated(self._activations[adapter], inputs[1] @ a.T + term.biases[0])
            return (outputs[0] + (between @ b + term.biases[1]),)

        return add_to
