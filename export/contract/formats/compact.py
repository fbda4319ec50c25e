"""Operators whose codes are more compact than any kernel reads: the same weights exist exactly as 8-bit codes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Union

from export.contract.formats.trellis import TRELLIS_MATMUL, TrellisLayout
from export.contract.formats.vectors import VECTOR_MATMUL, VectorLayout

CompactLayout = Union[VectorLayout, TrellisLayout]
COMPACT_LAYOUTS: Mapping[str, type[VectorLayout] | type[TrellisLayout]] = {
    VECTOR_MATMUL: VectorLayout,
    TRELLIS_MATMUL: TrellisLayout,
}


def compact_layout(op_type: str, attributes: Mapping[str, int]) -> CompactLayout:
    """The layout of a node. Raises KeyError, TypeError or ValueError when an attribute is missing or out of range."""
    kind = COMPACT_LAYOUTS[op_type]
    return kind(**{name: attributes[name] for name in kind.__dataclass_fields__})
