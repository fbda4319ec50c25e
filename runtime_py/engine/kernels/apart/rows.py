"""Single tokens of several texts times a codebook matrix: the codes are read and looked up once for all of them.

Every token's integers, blocks and sums are those of matvec.py in the same order, so that its result is the same to the
bit whatever tokens come with it.
"""

from __future__ import annotations

from numba.extending import overload

from runtime_py.engine.kernels.apart.in_memory import SCRATCH_BYTES, rows_in_memory
from runtime_py.engine.kernels.apart.in_registers import rows_in_registers

__all__ = ["ROWS", "SCRATCH_BYTES", "matvec_apart_rows"]

ROWS = 4  # that are shared out among threads as one, both ways
_MANY_REGISTERS = ("avx512vbmi", "avx512")


def matvec_apart_rows(
    isa, width, matrix, quantized, sums, scales, high, tokens, first, last, out, bias, accumulate, scratch
):
    """out[:, first:last] (= or +=) rows of the matrix times each of up to MOST_TOKENS tokens, plus bias.

    out: float32 [tokens, rows]; scratch: SCRATCH_BYTES, and one byte for each column rounded up to 64. Stands for the
    code that Numba makes below.
    """


@overload(matvec_apart_rows)
def _matvec_apart_rows(
    isa, width, matrix, quantized, sums, scales, high, tokens, first, last, out, bias, accumulate, scratch
):
    chosen = rows_in_registers if isa.value in _MANY_REGISTERS else rows_in_memory

    def code(isa, width, matrix, quantized, sums, scales, high, tokens, first, last, out, bias, accumulate, scratch):
        chosen(isa, width, matrix, quantized, sums, scales, high, tokens, first, last, out, bias, accumulate, scratch)

    return code
