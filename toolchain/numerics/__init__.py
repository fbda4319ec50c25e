"""Hessians, k-means, products, experts as ordinary layers."""

from __future__ import annotations

from runtime_py.system import numba_ready  # noqa: F401 (before any module of this package)
