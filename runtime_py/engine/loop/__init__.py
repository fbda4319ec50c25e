"""The compiled loop over the table of steps, and a driver for each group of kinds."""

import runtime_py.system.numba_ready  # noqa: F401 (before Numba)
