"""Drivers for the Pi's cores, assembled here and run under qemu, against plain numpy, bit by bit."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.arm.cycles.boards import BOARDS
from tests.arm.cycles.kernels import assemblies, decode
from tests.arm.product_reference import Case

GCC, QEMU = "aarch64-linux-gnu-gcc", "qemu-aarch64-static"
pytestmark = pytest.mark.skipif(
    not (shutil.which(GCC) and shutil.which(QEMU)), reason=f"{GCC} or {QEMU} is not installed"
)
SHAPES = ((33, 640), (7, 300))  # whole blocks with a half one, and an odd tail


@pytest.mark.parametrize("name", list(BOARDS))
@pytest.mark.parametrize("kind, bits", [("bits", 3), ("halves", 2), ("halves", 3), ("halves", 4)])
def test_products_are_numpys_to_the_bit(name, kind, bits, tmp_path):
    board = BOARDS[name]
    kernel = decode("", kind, bits)
    assemblies(board, [kernel], tmp_path)
    program, symbol = tmp_path / "call", kernel.wanted(board).symbol
    source = [str(tmp_path / f"{kernel.wanted(board).name}.s"), str(Path(__file__).with_name("call.c"))]
    march = f"-march={board.clang}+lse" if name == "rpi5" else f"-march={board.clang}"
    subprocess.run([GCC, "-O1", "-static", march, f"-DDRIVER={symbol}", *source, "-o", str(program)], check=True)
    for rows, columns in SHAPES:
        for tokens in (1, 20):
            case = Case(kind, bits, rows, columns, tokens)
            found = case.found(board.isa, [QEMU, "-cpu", board.core, str(program)], tmp_path)
            expected = case.expected(case.made())
            assert np.array_equal(found.view(np.int32), expected.view(np.int32)), (case, found, expected)
