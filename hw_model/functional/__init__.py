"""What accelerators compute, bit for bit: the same descriptions that are priced, as integer arithmetic."""

import export.native.numba_import  # noqa: F401 (before anything that imports Numba)
