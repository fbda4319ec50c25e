"""Makes export/trellis_levels.json: trellis levels for normally distributed weights, which every matrix may share.

    python -m toolchain.quantize.solvers.standard_trellis

Lloyd's iteration on 1,024 columns of 256 standard normal numbers: best paths and centroids in turn, then int8 entries
in units of 1/UNIT of the standard deviation. Matrices too small to pay for levels of their own take these.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

import export.contract.formats.trellis
from export.contract.formats.trellis import LEVEL_LIMIT, STANDARD_FILE, STANDARD_STATE_BITS, UNIT
from toolchain.quantize.solvers.trellis_column import trellis_kind
from toolchain.quantize.solvers.trellis_paths import nearest

_ROUNDS = 60


def fit_levels(bits: int) -> tuple[np.ndarray, float]:
    """int8 [2**STANDARD_STATE_BITS], and their mean squared error on other numbers."""
    rng = np.random.default_rng(bits)
    sample, other = rng.standard_normal((2, 1024, 256)).astype(np.float32)
    count, kind = 1 << STANDARD_STATE_BITS[bits], trellis_kind(bits, STANDARD_STATE_BITS[bits])
    levels, states = rng.standard_normal(count).astype(np.float32), np.empty(sample.shape, np.int32)
    weight = np.ones(256, np.float32)
    for _ in range(_ROUNDS):
        nearest(kind, sample, weight, levels, states)
        mass = np.bincount(states.ravel(), minlength=count)
        total = np.bincount(states.ravel(), sample.ravel(), count)
        levels = np.where(mass > 0, total / np.maximum(mass, 1), levels).astype(np.float32)
    whole = np.clip(np.rint(levels * UNIT), -LEVEL_LIMIT, LEVEL_LIMIT)
    nearest(kind, other, weight, (whole / UNIT).astype(np.float32), states)
    return whole.astype(np.int8), float(np.mean((other - whole[states] / UNIT) ** 2))


def main() -> None:
    found = {bits: fit_levels(bits) for bits in STANDARD_STATE_BITS}
    path = Path(export.contract.formats.trellis.__file__).with_name(STANDARD_FILE)
    path.write_text(json.dumps({str(bits): levels.tolist() for bits, (levels, _) in found.items()}) + "\n")
    for bits, (_, error) in found.items():
        print(f"{bits} bits: mean squared error {error:.5f} of standard normal numbers")


if __name__ == "__main__":
    main()
