"""Weight formats, one file each, and the registry that everything else knows them by.

A new format is a file with a Layout (base.py) and a line in export/contract/registry.py; docs/formats-howto.md goes
through one.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from export.contract.formats.base import Layout, layout_from
from export.contract.formats.codebook import CodebookLayout
from export.contract.registry import FORMAT_CLASSES

__all__ = [
    "FORMATS",
    "LOOKUPS",
    "PRODUCTS",
    "CodebookLayout",
    "Layout",
    "layout_of",
    "operator_layout",
]
FORMATS: dict[str, type[Layout]] = {
    scheme: getattr(import_module(f"export.contract.formats.{scheme}"), name) for scheme, name in FORMAT_CLASSES.items()
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
