"""Numba as this project uses it: import this before Numba. Whoever runs from objects (engine/objects/) never does."""

import export.native.numba_import  # noqa: F401 (before anything that imports Numba)
from runtime_py.system import jit_cache

jit_cache.install()
