"""Tender's activations (arXiv 2406.12930): channels in groups whose units are powers of two apart.

A channel's middle is subtracted (its product is added back); a channel whose largest magnitude lies within
(T / 2^(G-i), T / 2^(G-1-i)], T that of all, is of group i, group 0 takes all smaller ones. Partial sums of one group
become those of the next by a shift of the accumulator. In the paper groups are found by calibration, as in a folder of
--method tender (export/contract/operators/tender.py); here, for all other folders, they are those of the tokens that
are multiplied, at most CHUNK at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from export.contract.operators.tender import group_of

CHUNK = 256  # tokens that share their groups


@dataclass(frozen=True)
class Grouped:
    """Activations [T, K]: codes << group times `unit`, plus `middle`."""

    codes: np.ndarray  # int64 [T, K]
    group: np.ndarray  # int64 [K]
    unit: float  # of group 0
    middle: np.ndarray  # float64 [K]

    @property
    def integers(self) -> np.ndarray:
        """What the shifting accumulator sums: int64 [T, K]."""
        return self.codes << self.group


def grouped(x: np.ndarray, groups: int, bits: int) -> Grouped:
    """float [T, K] in `groups` groups of `bits`-bit codes."""
    x = np.asarray(x, np.float64)
    middle = (x.max(axis=0) + x.min(axis=0)) / 2
    rest = x - middle
    largest = np.abs(rest).max(axis=0)
    top = float(largest.max())
    limit = 2 ** (bits - 1) - 1
    if top == 0:
        return Grouped(np.zeros(x.shape, np.int64), np.zeros(x.shape[1], np.int64), 1.0, middle)
    group = group_of(largest, groups)
    unit = top / 2.0 ** (groups - 1) / limit
    codes = np.clip(np.rint(rest / (unit * 2.0**group)), -limit, limit).astype(np.int64)
    return Grouped(codes, group, unit, middle)


def product(x: np.ndarray, weights: np.ndarray, groups: int, bits: int) -> np.ndarray:
    """float [T, K] times integers [N, K] transposed: float64 [T, N]."""
    found = []
    for start in range(0, len(x), CHUNK):
        part = grouped(x[start : start + CHUNK], groups, bits)
        sums = part.integers.astype(np.float64) @ weights.T.astype(np.float64)
        found.append(sums * part.unit + part.middle @ weights.T.astype(np.float64))
    return np.concatenate(found)
