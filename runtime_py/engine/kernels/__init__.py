"""Compiled kernels, and how stored matrices lie before them."""

import runtime_py.system.numba_ready  # noqa: F401 (before Numba)
