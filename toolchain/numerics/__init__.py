"""Hessians, k-means, products, experts as ordinary layers."""

from __future__ import annotations

from runtime_py.system import jit_cache

jit_cache.install()  # before any module of this package compiles
