"""Experts are stored one below the other: no codebook may be shared by rows of two of them."""

from __future__ import annotations

from dataclasses import replace

from toolchain.quantize.methods.aqlm import DIMENSION, ENTRY_BITS
from toolchain.quantize.methods.athena import choose_layout
from toolchain.quantize.solvers.trellis import choose_layout as choose_trellis
from toolchain.quantize.solvers.vectors import choose_dimension
from toolchain.quantize.solvers.vectors import choose_layout as choose_vectors
from toolchain.settings.quantize import QuantizeSettings
from toolchain.settings.solver import FORMAT_SOLVERS


def apart(settings: QuantizeSettings, rows: int, columns: int) -> QuantizeSettings:
    """These settings with as many rows a codebook as divide an expert of shape [rows, columns], not fewer than else."""
    if settings.format in FORMAT_SOLVERS:
        return settings
    shared = _rows_per_codebook(settings, rows, columns)
    if rows % shared == 0:
        return settings
    return replace(settings, rows_per_codebook=next(n for n in range(shared, rows + 1) if rows % n == 0))


def _rows_per_codebook(settings: QuantizeSettings, rows: int, columns: int) -> int:
    """What the method would choose."""
    if settings.method == "aqlm":
        return choose_vectors(rows, columns, settings, DIMENSION, ENTRY_BITS, settings.width)[0].rows_per_codebook
    if settings.uses_trellis and (trellis := choose_trellis(rows, columns, settings)) is not None:
        return trellis[0].rows_per_codebook
    dimension = choose_dimension(rows, columns, settings)
    if dimension > 1:
        bits = settings.width * dimension
        return choose_vectors(rows, columns, settings, dimension, bits, books=1)[0].rows_per_codebook
    return choose_layout(rows, columns, settings)[0].rows_per_codebook
