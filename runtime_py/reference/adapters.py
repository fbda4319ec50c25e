"""Adapters' low-rank terms on numpy arrays, beside the interpreter's products: slow and obvious."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from export.adapters.sites import Site
from export.adapters.store import Adapter, Factors
from export.artefacts.reader import Node
from export.contract.errors import InputError
from runtime_py.reference.interpreter import AddTo


class ReferenceTerms:
    """The terms of some adapters at the products of one graph."""

    def __init__(self, adapters: Sequence[Adapter] = (), sites: Sequence[Site] = ()) -> None:
        """sites: of the graph. Every term has one, of its size."""
        self.names = tuple(adapter.name for adapter in adapters)
        self._terms: dict[str, dict[str, Factors]] = {"": {}} | {
            one.name: {site.node: one.terms[site.module] for site in sites if site.module in one.terms}
            for one in adapters
        }

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
            return (outputs[0] + (inputs[0] @ a.T) @ b,)

        return add_to
