"""Drivers for the Pi's cores, assembled here and run under qemu, against plain numpy, bit by bit."""

from __future__ import annotations

import numpy as np
import pytest

from tests.arm.assembled import MISSING, QEMU, program
from tests.arm.cycles.boards import BOARDS, MATRICES
from tests.arm.cycles.cost import cost
from tests.arm.cycles.kernels import assemblies, assembly_file, decode, prefill
from tests.arm.cycles.mca import tool
from tests.arm.product_reference import Case

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
SHAPES = ((33, 640), (7, 300))  # whole blocks with a half one, and an odd tail


@pytest.mark.parametrize("board", [*BOARDS.values(), MATRICES], ids=lambda board: board.name)
@pytest.mark.parametrize("kind, bits", [("bits", 3), ("halves", 2), ("halves", 3), ("halves", 4)])
def test_products_are_numpys_to_the_bit(board, kind, bits, tmp_path):
    kernel = decode("", kind, bits)
    assemblies(board, [kernel], tmp_path)
    wanted = kernel.wanted(board)
    made = program(board, assembly_file(tmp_path, wanted), wanted.symbol, tmp_path)
    for rows, columns in SHAPES:
        for tokens in (1, 20):
            case = Case(kind, bits, rows, columns, tokens)
            found = case.found(board.isa, [QEMU, "-cpu", board.core, str(made)], tmp_path)
            expected = case.expected(case.made())
            assert np.array_equal(found.view(np.int32), expected.view(np.int32)), (case, found, expected)


@pytest.mark.skipif(tool() is None, reason="no llvm-mca")
def test_many_tokens_pass_by_twos_where_the_processor_can(tmp_path):
    [text] = assemblies(MATRICES, [prefill(MATRICES)], tmp_path).values()
    loop = cost(text, prefill(MATRICES), MATRICES)
    assert text.count("\tsmmla\t") == 16 and loop.loop < 1 / 38
