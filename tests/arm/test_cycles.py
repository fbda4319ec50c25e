"""Loops are found in assembly, the usual way round them too, and cycles are within what the cores can do."""

from __future__ import annotations

import pytest

from tests.arm.cycles.assembly import functions
from tests.arm.cycles.boards import BOARDS
from tests.arm.cycles.cost import cost
from tests.arm.cycles.kernels import assemblies, attending, decode, decoding, prefill
from tests.arm.cycles.loops import around, loops, once_round
from tests.arm.cycles.mca import tool
from tests.arm.cycles.products import integers

# Rows with blocks in them, and something rare in a block that the usual way jumps over.
NEST = """
\t.type\tproduct,@function
product:
\tmov x1, #0
.LBB0_1:
\tmovi v4.2d, #0
\tb .LBB0_3
.LBB0_2:
\tsdot v4.4s, v0.16b, v1.16b
\tsubs x2, x2, #1
\tb.eq .LBB0_4
.LBB0_3:
\tldp q0, q1, [x3], #32
\tcbz x4, .LBB0_2
\tsdot v5.4s, v0.16b, v1.16b
\tsdot v5.4s, v0.16b, v1.16b
\tb .LBB0_2
.LBB0_4:
\tstr q4, [x5], #16
\tsubs x6, x6, #1
\tb.ne .LBB0_1
\tret
.Lfunc_end0:
"""
INLINE = """
\t.type\tknown,%function
known:
1:
\t.inst 0x4f9fe18a
2:
\tsubs x1, x1, #1
\tb.ne 2b
\tcbnz x2, 1b
\tret
.Lfunc_end0:
"""


def test_loops_and_what_is_around_them():
    function = functions(NEST)["product"]
    inner, outer = sorted(loops(function), key=lambda loop: len(loop.blocks))
    assert (inner.header, outer.header) == (".LBB0_3", ".LBB0_1")
    once = once_round(function, inner)
    assert integers(once) == 16 and len(once) == 5  # not through what is rare
    before, behind = around(function, inner, outer)
    assert [line.split()[0] for line in (*before, *behind)] == ["movi", "b", "str", "subs", "b.ne"]
    before, behind = around(function, outer, None)
    assert before == ["mov x1, #0"] and behind == ["ret"]


def test_inline_assembly_has_numbered_labels_and_instructions_as_words():
    function = functions(INLINE)["known"]
    found = {loop.header: once_round(function, loop) for loop in loops(function)}
    assert len(found) == 2
    assert max(found.values(), key=len)[0] == "sdot v10.4s, v12.16b, v31.4b[0]"
    with pytest.raises(ValueError, match="not known"):
        functions(INLINE.replace("0x4f9fe18a", "0x12345678"))


def test_every_loop_is_in_a_function_that_the_assembly_has(tmp_path):
    board, one = BOARDS["rpi5"], decoding()[0]
    for kernel, text in assemblies(board, [one, prefill(board), *attending()], tmp_path).items():
        found = [function for name, function in functions(text).items() if kernel.function in name]
        assert any(kernel.counted(once_round(function, loop)) for function in found for loop in loops(function)), kernel


@pytest.mark.skipif(tool() is None, reason="llvm-mca of LLVM 17 or later is not installed")
def test_loops_cost_what_a_core_can_do(tmp_path):
    board = BOARDS["rpi5"]
    codes, tile = decode("scalar codes", "bits", 3), prefill(board)
    texts = assemblies(board, [codes, tile], tmp_path)
    found = cost(texts[codes], codes, board)
    assert found.loop <= found.whole < 1.3 * found.loop
    # A look-up and a dot product for every 16 weights on two pipelines, and at most four times that.
    assert 1 / 16 < found.loop < 4 / 16
    # What memory gives is worked off in three quarters of the time.
    assert found.of_memory(board) < 0.75
    products = cost(texts[tile], tile, board)
    assert 1 / 32 <= products.loop <= products.whole and products.operations(board) > 300e9
