"""Single tokens of several texts times a codebook matrix: the codes are read and looked up once for all of them.

Every token's integers, blocks and sums are those of matvec.py in the same order, so that its result is the same to the
bit whatever tokens come with it.
"""

from __future__ import annotations

import numba as nb
from numba.extending import overload

from runtime_py.engine.kernels.apart.in_memory import SCRATCH_BYTES, rows_in_memory
from runtime_py.engine.kernels.apart.in_registers import MOST, rows_in_registers

__all__ = ["ROWS", "SCRATCH_BYTES", "matvec_apart_rows"]

ROWS = 4  # that threads share out as one
_MANY_REGISTERS = ("avx512vbmi", "avx512")


def _few(isa, tokens):
    """Whether sums of so many tokens fit the registers. Stands for the code that Numba makes below."""


@overload(_few)
def _few_tokens(isa, tokens):
    if isa.value in _MANY_REGISTERS:
        return lambda isa, tokens: tokens <= MOST
    return lambda isa, tokens: False


def _in_registers(*arguments):
    """rows_in_registers where there are enough. Stands for the code that Numba makes below."""


@overload(_in_registers)
def _rows_in_registers(
    isa, width, matrix, quantized, sums, scales, high, tokens, first, last, out, bias, accumulate, scratch
):
    def code(isa, width, matrix, quantized, sums, scales, high, tokens, first, last, out, bias, accumulate, scratch):
        rows_in_registers(
            isa, width, matrix, quantized, sums, scales, high, tokens, first, last, out, bias, accumulate, scratch
        )

    def nothing(isa, width, matrix, quantized, sums, scales, high, tokens, first, last, out, bias, accumulate, scratch):
        pass

    return code if isa.value in _MANY_REGISTERS else nothing


@nb.njit(cache=True)
def matvec_apart_rows(
    isa, width, matrix, quantized, sums, scales, high, tokens, first, last, out, bias, accumulate, scratch
):
    """out[:, first:last] (= or +=) rows of the matrix times each of up to MOST_TOKENS tokens, plus bias.

    out: float32 [tokens, rows]; scratch: SCRATCH_BYTES, and one byte for each column rounded up to 64.
    """
    if _few(isa, tokens):
        _in_registers(
            isa, width, matrix, quantized, sums, scales, high, tokens, first, last, out, bias, accumulate, scratch
        )
    else:
        rows_in_memory(
            isa, width, matrix, quantized, sums, scales, high, tokens, first, last, out, bias, accumulate, scratch
        )
