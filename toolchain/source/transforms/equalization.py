"""Columns of a matrix made equally large by factors folded into the layer before it; the model computes the same.

A code has the same number of bits in every column of a matrix, and codes serve best what is distributed alike. Rows
have scales of their own, columns do not; but what feeds a column can be scaled instead (cross-layer equalization,
arXiv 1906.04721), where that costs nothing at run time (sites.py).

Rows that are divided have scales of their own, so they lose nothing. Factors are those of the column's energy, every
row counted relative to its own. Measured in docs/quantizer.md.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from export.graph.spec import ModelSpec
from toolchain.source.checkpoint import SourceModel
from toolchain.source.transforms.folding import FoldedSource
from toolchain.source.transforms.sites import Site, sites

Factors = Callable[[], torch.Tensor]
_ROWS = 1024  # in float64 at a time
_MOST = 4.0  # a factor at most, and at least its inverse: the rows it divides have coded scales


def column_factors(energy: torch.Tensor) -> torch.Tensor:
    """What to multiply columns by so that their energies [K] are alike; dead columns stay. float32 [K]."""
    known = energy > 0
    if not bool(known.any()):
        return torch.ones(len(energy))
    factors = torch.where(known, energy / energy[known].median(), 1.0) ** -0.5
    return factors.clamp(1 / _MOST, _MOST).float()


def column_energy(weight: torch.Tensor) -> torch.Tensor:
    """Sum over the rows of a weight [N, K] of the squares, relative to the row's mean square. float64 [K]."""
    total = torch.zeros(weight.shape[1], dtype=torch.float64)
    for rows in weight.split(_ROWS):
        squares = rows.double().square()
        total += (squares / squares.mean(dim=1, keepdim=True).clamp_min(1e-300)).sum(dim=0)
    return total


class EqualizedSource(FoldedSource):
    """A checkpoint whose linear layers come out with equalized columns, whatever its architecture admits of it."""

    def __init__(self, inner: SourceModel, spec: ModelSpec) -> None:
        super().__init__(inner)
        self._spec = spec
        self._known: dict[str, torch.Tensor] = {}  # factors by the first layer that takes them
        for number in range(spec.blocks):
            for site in sites(spec, number):
                self._plan(spec.block_name(number), site)

    def _plan(self, prefix: str, site: Site) -> None:
        factors = partial(self._factors, prefix, site)

        def of_columns() -> torch.Tensor:
            return factors() if site.columns is None else factors()[site.columns]

        for layer in (*site.readers, *site.floats):
            self._scale_columns(prefix + layer, of_columns)
        if site.norm is not None:
            offset = self._spec.norm_offset
            self.change(f"{prefix}{site.norm}.weight", lambda w: (w + offset) / factors() - offset)
            self.change(f"{prefix}{site.norm}.bias", lambda b: b / factors())
        if site.layer is not None and site.rows is not None:
            self._divide_rows(prefix + site.layer, site.rows, factors)
        if site.kernel is not None:
            self.change(f"{prefix}{site.kernel}.bias", lambda b: b / factors())

    def _factors(self, prefix: str, site: Site) -> torch.Tensor:
        """Factors of a site's channels, from the columns of all its readers."""
        first = prefix + site.readers[0]
        if first not in self._known:
            layers = [self._rows_first(self.inner.tensor(f"{prefix}{name}.weight")) for name in site.readers]
            energy = torch.stack([column_energy(weight) for weight in layers]).sum(dim=0)
            if site.columns is not None:
                channels = torch.zeros(int(site.columns.max()) + 1, dtype=energy.dtype)
                energy = channels.index_add_(0, torch.from_numpy(site.columns), energy)
            self._known[first] = column_factors(energy)
        return self._known[first]

    def _rows_first(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.T if self._spec.linear_is_transposed else weight

    def _scale_columns(self, layer: str, factors: Factors) -> None:
        self.change(f"{layer}.weight", lambda w: self._rows_first(self._rows_first(w) * factors()))

    def _divide_rows(self, layer: str, rows: np.ndarray, factors: Factors) -> None:
        """rows: which of the layer's outputs the factors [len(rows)] belong to."""

        def weight(w: torch.Tensor) -> torch.Tensor:
            turned = self._rows_first(w).clone()
            turned[rows] /= factors()[:, None]
            return self._rows_first(turned)

        def bias(b: torch.Tensor) -> torch.Tensor:
            changed = b.clone()
            changed[rows] /= factors()
            return changed

        self.change(f"{layer}.weight", weight)
        self.change(f"{layer}.bias", bias)
