"""Makes export/contract/formats/trellis_halves.json: levels that are sums, for normally distributed weights.

    python -m toolchain.quantize.solvers.standard_trellis

Lloyd's iteration on columns of 256 standard normal numbers (best paths and least-squares halves in turn) ends
in one of many minima: the best of some starts is shaken and iterated again, ever less, and what is better is kept.
Matrices too small to pay for levels of their own take these, in units of 1/UNIT of the standard deviation.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

import export.contract.formats.trellis
from export.contract.formats.halves import HALF, joined
from export.contract.formats.trellis import LEVEL_LIMIT, STANDARD_FILES, STANDARD_STATE_BITS, SUMS, UNIT
from toolchain.quantize.solvers.viterbi.column import trellis_kind
from toolchain.quantize.solvers.viterbi.levels import entries_of, means
from toolchain.quantize.solvers.viterbi.paths import nearest

_RUNS, _STARTS, _SHAKES = 6, 8, 300
_COLUMNS, _ROWS = 256, 256
_MOST, _LEAST = 0.25, 0.01  # standard deviations by which entries are shaken, first and last


class Fit:
    """Levels by Lloyd's iteration on one sample."""

    def __init__(self, bits: int, sample: np.ndarray) -> None:
        self.bits, self.sample, self.kind = bits, sample, trellis_kind(bits, STANDARD_STATE_BITS[bits])
        self._weight, self._states = np.ones(sample.shape[1], np.float32), np.empty(sample.shape, np.int32)

    def error(self, levels: np.ndarray) -> float:
        """Mean squared error of the best paths."""
        table = levels.astype(np.float32)
        nearest(self.kind, self.sample, self._weight, table, self._states)
        return float(np.mean((self.sample - table[self._states]) ** 2))

    def settled(self, halves: np.ndarray, rounds: int) -> tuple[np.ndarray, float]:
        """Halves [32] after so many rounds, and their error."""
        levels = joined(halves, self.bits)
        for _ in range(rounds):
            self.error(levels)
            states = self._states.ravel()
            mass, total = np.bincount(states, minlength=256), np.bincount(states, self.sample.ravel(), 256)
            levels = means(mass, total, levels, self.bits, sums=True)
        return entries_of(levels * UNIT, self.bits) / UNIT, self.error(levels)


def shaken(fit: Fit, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Halves [32] and their error on the sample: the best of some starts, shaken ever less."""
    best, error = min((fit.settled(rng.standard_normal(2 * HALF), 30) for _ in range(_STARTS)), key=_error)
    for shake in range(_SHAKES):
        size, moved = _MOST + (_LEAST - _MOST) * shake / _SHAKES, best.copy()
        if shake % 3 == 0:
            moved += size / 2 * rng.standard_normal(2 * HALF)
        elif shake % 3 == 1:
            moved[rng.integers(2 * HALF, size=3)] += 2 * size * rng.standard_normal(3)
        else:  # two entries of one half change places
            one, other = HALF * rng.integers(2) + rng.integers(HALF, size=2)
            moved[[one, other]] = moved[[other, one]]
        best, error = min((best, error), fit.settled(moved, 6), key=_error)
    return fit.settled(best, 30)


def polished(fit: Fit, whole: np.ndarray) -> np.ndarray:
    """Whole halves [32] that no step of one entry by one makes better."""
    error, better = fit.error(joined(whole, fit.bits) / UNIT), True
    while better:
        better = False
        for entry in range(2 * HALF):
            for step in (-1.0, 1.0):
                moved = whole.copy()
                moved[entry] += step
                its = fit.error(joined(moved, fit.bits) / UNIT)
                if its < error:
                    whole, error, better = moved, its, True
    return whole


def _error(found: tuple[np.ndarray, float]) -> float:
    return found[1]


def fit_halves(bits: int) -> tuple[np.ndarray, float]:
    """int8 [32], and the mean squared error of their levels on other numbers."""
    rng = np.random.default_rng(bits)
    fit = Fit(bits, rng.standard_normal((_COLUMNS, _ROWS)).astype(np.float32))
    best, _ = min((shaken(fit, rng) for _ in range(_RUNS)), key=_error)
    whole = polished(fit, np.rint(best * UNIT))
    assert np.abs(joined(whole, bits)).max() <= LEVEL_LIMIT
    other = Fit(bits, np.random.default_rng(100 + bits).standard_normal((1024, _ROWS)).astype(np.float32))
    return whole.astype(np.int8), other.error(joined(whole, bits) / UNIT)


def main() -> None:
    found = {bits: fit_halves(bits) for bits in STANDARD_STATE_BITS}
    path = Path(export.contract.formats.trellis.__file__).with_name(STANDARD_FILES[SUMS])
    path.write_text(json.dumps({str(bits): halves.tolist() for bits, (halves, _) in found.items()}) + "\n")
    for bits, (_, error) in found.items():
        print(f"{bits} bits: mean squared error {error:.5f} of standard normal numbers")


if __name__ == "__main__":
    main()
