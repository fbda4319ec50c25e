"""Runs on the ARM side (under qemu): a whole model from kernels that x86 has compiled, without Numba.

python -m tests.arm.objects EXPECTED.npz MODEL_FOLDER FOLDER_OF_KERNELS
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np


def main() -> None:
    """Exit status 1 when anything differs."""
    sys.modules["numba"] = None  # type: ignore[assignment]  # whoever imports it fails
    from runtime_py.machine.isa import pick
    from runtime_py.making import ready
    from tests.arm.generation import generation

    expected, model, kernels = np.load(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
    why, _, taken = ready(model, kernels=kernels)
    start = time.perf_counter()
    found = generation(model)
    if why or not all(np.array_equal(found[name], expected[name]) for name in found):
        raise SystemExit(f"{pick()}: differs from x86: {why} {found['tokens']}, {expected['tokens']}")
    seconds = time.perf_counter() - start
    print(f"{pick()}: {taken} kernels from x86, no Numba, equal bit by bit; generation in {seconds:.1f} s")


if __name__ == "__main__":
    main()
