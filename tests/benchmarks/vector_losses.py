"""Layer losses of scalar and vector codes at equal width, on real matrices with guided Hessians.

python -m tests.benchmarks.vector_losses
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from toolchain.pipeline import CalibrationChoice, quantize_model
from toolchain.quantize import athena
from toolchain.quantize.settings import QuantizeSettings

SHARED = Path("../shared")
MODELS = {"scribe-6M": "scribe_valid.txt", "stories260K": "tinystories_val.txt"}
CHOSEN = {"scribe-6M": (8, 10, 13, 17, 20, 31, 34, 38), "stories260K": (0, 1, 2, 3, 4, 6, 30, 34)}  # in forward order


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
                for dimension in (1, 2, 4):
                    if dimension * bits <= 8:
                        result = athena.quantize(weights, hessian, QuantizeSettings(bits=bits, vector=dimension))
                        stored = result.stored("w")[1]
                        row.append(f"{list(result.losses.values())[-1]:.6f} ({stored.effective_bits:.3f})")
                print(f"| {model} layer {i} {weights.shape} | {bits} | " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
