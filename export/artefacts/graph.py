"""A model's graph as plain data: what the runtime and the cost model work with. Reads nothing (reader.py does)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from export.contract.errors import InputError
from export.contract.formats import LOOKUPS, PRODUCTS, CodebookLayout, Layout, operator_layout
from export.contract.formats.base import DOMAIN
from export.contract.operators.experts import EXPERT_PRODUCTS, ExpertLayout
from export.contract.operators.integers import IntegerLayout, format_of
from export.contract.operators.tender import TenderFormat
from export.contract.sdr import SdrFormat
from export.contract.sparse import SparseLayout

RUNTIME_DOMAIN = "ai.athena.runtime"  # of nodes that the runtime puts into a graph, and no file may hold
_T = TypeVar("_T")


@dataclass(frozen=True)
class Node:
    """One operator call. Absent optional inputs are empty strings."""

    op_type: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_product(self) -> bool:
        """Whether it is X @ W^T with a matrix of a weight format."""
        return self.domain == DOMAIN and self.op_type in PRODUCTS

    @property
    def is_lookup(self) -> bool:
        """Whether it looks up rows of a matrix of a weight format."""
        return self.domain == DOMAIN and self.op_type in LOOKUPS

    def matrix_layout(self) -> Layout:
        """Attributes of a product with a stored matrix, or of a lookup. Raises InputError when one is wrong."""
        return self.attributes_as(partial(operator_layout, self.op_type))

    @property
    def is_expert_product(self) -> bool:
        """Whether it is a product with the matrices of picked experts."""
        return self.domain == DOMAIN and self.op_type in EXPERT_PRODUCTS

    def expert_layout(self) -> ExpertLayout:
        """Attributes of a product with experts. Raises InputError when one is wrong."""
        return self.attributes_as(partial(ExpertLayout.of, self.op_type))

    def layout(self) -> CodebookLayout:
        """Attributes of a CodebookMatMul or CodebookGather node. Raises InputError when one is wrong."""
        found = self.matrix_layout()
        if not isinstance(found, CodebookLayout):
            raise InputError(f"node {self.name}: {self.op_type} has no codebook")
        return found

    def sparse_layout(self) -> SparseLayout:
        """Attributes of a SparseMatMul node. Raises InputError when one is wrong."""
        return self.attributes_as(partial(_fields_of, SparseLayout))

    def integer_layout(self) -> IntegerLayout:
        """Attributes of an SdrMatMul node. Raises InputError when one is wrong."""
        return self.attributes_as(partial(_fields_of, IntegerLayout))

    def sdr_format(self) -> SdrFormat:
        """SDR format of an SdrQuantize or SdrAttention node. Raises InputError when it is none."""
        return self.attributes_as(format_of)

    def tender_format(self) -> TenderFormat:
        """Attributes of a TenderQuantize node. Raises InputError when one is wrong."""
        return self.attributes_as(TenderFormat.of)

    def attributes_as(self, read: Callable[..., _T], *more: int) -> _T:
        """read(attributes, *more): what a layout makes of them. Raises InputError when one is wrong."""
        try:
            return read(self.attributes, *more)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"node {self.name}: attributes of {self.op_type} are wrong ({error})") from None


def _fields_of(kind: type[_T], attributes: Mapping[str, Any]) -> _T:
    return kind(**{name: attributes[name] for name in kind.__dataclass_fields__})  # type: ignore[attr-defined]


@dataclass(frozen=True)
class ValueInfo:
    """A graph input or output, or an inner value whose shape the file states."""

    name: str
    dtype: np.dtype | None
    shape: tuple[int | str, ...] | None  # symbolic dimensions by name


@dataclass(frozen=True)
class Graph:
    """An ONNX graph as plain data; weights are read-only views of the mapped file."""

    folder: Path
    nodes: tuple[Node, ...]
    weights: Mapping[str, np.ndarray]
    inputs: tuple[ValueInfo, ...]
    outputs: tuple[ValueInfo, ...]
    values: Mapping[str, ValueInfo]  # every value whose shape is stated, weights included
    metadata: Mapping[str, str]
    opset: int
    files: Mapping[str, int]  # those that hold weights, and how many of their bytes
    larger_than_memory: bool = False  # whether they are mapped and do not fit: said by whoever knows the memory

    def names(self) -> set[str]:
        """Names of all its values; those of a file may be any."""
        own = (*self.weights, *(value.name for value in self.inputs))
        return {*own, *(name for node in self.nodes for name in (*node.inputs, *node.outputs))}


def fresh(name: str, taken: set[str]) -> str:
    """The name for a value that is made, or a longer one where it is taken."""
    while name in taken:
        name += "#"
    return name
