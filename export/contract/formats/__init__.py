"""Weight formats, one file each, and the registry that everything else knows them by.

A new format is a file with a Layout (base.py) and an entry here; docs/formats-howto.md goes through one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from export.contract.formats.base import Layout, layout_from
from export.contract.formats.codebook import CodebookLayout
from export.contract.formats.mxfp4 import Mxfp4Layout
from export.contract.formats.razored import RazoredLayout
from export.contract.formats.trellis import TrellisLayout
from export.contract.formats.vectors import VectorLayout

FORMATS: dict[str, type[Layout]] = {
    kind.SCHEME: kind for kind in (CodebookLayout, TrellisLayout, VectorLayout, RazoredLayout, Mxfp4Layout)
}
_BY_OPERATOR = {name: kind for kind in FORMATS.values() for name in (kind.OPERATOR, kind.LOOKUP) if name}
PRODUCTS = frozenset(kind.OPERATOR for kind in FORMATS.values() if kind.OPERATOR)  # X @ W^T with a stored matrix W
LOOKUPS = frozenset(kind.LOOKUP for kind in FORMATS.values() if kind.LOOKUP)  # rows of a stored matrix


def layout_of(scheme: str, attributes: Mapping[str, Any]) -> Layout:
    """The layout of a stored matrix from untrusted attributes. Raises KeyError, TypeError or ValueError."""
    return layout_from(FORMATS[scheme], attributes)


def operator_layout(op_type: str, attributes: Mapping[str, Any]) -> Layout:
    """The layout of a node of PRODUCTS or LOOKUPS. Raises KeyError, TypeError or ValueError."""
    return layout_from(_BY_OPERATOR[op_type], attributes)
