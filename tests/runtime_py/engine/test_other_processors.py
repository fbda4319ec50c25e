"""Kernels compile for processors with fewer instructions: LLVM aborts the process over one that it does not know."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from export.contract.formats.codebook import CodebookLayout
from runtime_py.machine.isa import pick
from tests.arm.cases import product

_CODE = """
import sys
import numpy as np
from export.contract.formats.codebook import CodebookLayout
from runtime_py.machine.isa import pick
from tests.arm.cases import product
assert pick() == sys.argv[1], pick()
np.save(sys.argv[2], product(pick(), CodebookLayout(3, 300, 7), 9))
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names x86 processors")
@pytest.mark.parametrize("processor, isa", [("haswell", "avx2"), ("x86-64", "portable")])
def test_an_older_processor_computes_the_same(processor, isa, tmp_path):
    root, found = Path(__file__).resolve().parents[3], tmp_path / "found.npy"
    environment = {
        **os.environ, "NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": "", "PYTHONPATH": str(root),
        "ATHENA_CACHE_DIR": str(tmp_path),
    }  # fmt: skip
    environment.pop("ATHENA_ISA", None)
    if isa == "avx2":
        environment["NUMBA_CPU_FEATURES"] = "+avx,+avx2,+fma,+f16c,+bmi,+bmi2,+lzcnt,+popcnt,+sse4.2,+ssse3"
    ran = subprocess.run([sys.executable, "-c", _CODE, isa, found], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert np.array_equal(np.load(found).view(np.uint32), product(pick(), CodebookLayout(3, 300, 7), 9).view(np.uint32))
