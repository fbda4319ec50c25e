"""Layer losses of scalar, vector and trellis codes at equal width, on real matrices with guided Hessians.

python -m tests.benchmarks.code_losses
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from toolchain.pipeline.run import CalibrationChoice, quantize_model
from toolchain.quantize.methods import athena
from toolchain.settings.quantize import QuantizeSettings

SHARED = Path("../shared")
MODELS = {"scribe-6M": "scribe_valid.txt", "stories260K": "tinystories_val.txt"}
CHOSEN = {"scribe-6M": (10, 13, 20, 34), "stories260K": (3, 6)}  # in forward order
SCALAR: dict[str, Any] = {}
TWO, FOUR = ({"format": "vectors", "dimension": count} for count in (2, 4))
TRELLIS, SUMS = {"format": "trellis"}, {"format": "trellis", "levels": "sums"}
CODES = {2: [SCALAR, TWO, FOUR, TRELLIS, SUMS], 3: [SCALAR, TWO, TRELLIS, SUMS], 4: [SCALAR, TWO, TRELLIS, SUMS]}


def problems(model: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights and Hessian of every linear layer, as a run at 2 bits hands them to the quantizer."""
    found, original = [], athena.quantize

    def noting(weights, hessian, settings):  # type: ignore[no-untyped-def]
        found.append((np.array(weights), np.array(hessian)))
        return original(weights, hessian, settings)

    settings = QuantizeSettings(bits=2, sequences=64, sequence_length=256, guided=True)
    choice = CalibrationChoice(str(SHARED / "text" / MODELS[model]), "0:0.5")
    athena.quantize = noting
    try:
        with tempfile.TemporaryDirectory() as scratch:
            quantize_model(str(SHARED / "models" / model), Path(scratch) / "q", settings, choice, quiet=True)
    finally:
        athena.quantize = original
    return found


def main() -> None:
    for model in MODELS:
        matrices = problems(model)
        for bits in (2, 3, 4):
            for i in CHOSEN[model]:
                weights, hessian = matrices[i]
                row = []
                for options in CODES[bits]:
                    result = athena.quantize(weights, hessian, QuantizeSettings(bits=bits, **options))
                    stored = result.stored("w")[1]
                    row.append(f"{list(result.losses.values())[-1]:.5f} ({stored.effective_bits:.2f})")
                print(f"| {model} layer {i} {weights.shape} | {bits} | " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
