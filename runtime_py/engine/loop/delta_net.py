"""The driver of the delta rule: work items are blocks of the columns of each head's state, which all tokens pass."""

from __future__ import annotations

import numba as nb

from runtime_py.engine.kernels.recurrent.delta_net import delta_block, token_numbers
from runtime_py.engine.layout.recurrent import COLUMNS, GROUP
from runtime_py.engine.loop.driver import read_step
from runtime_py.simd.atomics import fetch_add
from runtime_py.simd.vectors import get_f32


@nb.njit(cache=True)
def run_delta_rule(s, tokens, counter, scratch):
    """A DeltaRule."""
    blocks, width = (s.value_dim + COLUMNS - 1) // COLUMNS, s.value_heads * s.value_dim
    size = 4 * s.key_dim * COLUMNS
    item = fetch_add(counter, 1)
    while item < s.value_heads * blocks:
        head, column = item // blocks, item % blocks * COLUMNS
        shared = 4 * (head // (s.value_heads // s.key_heads)) * s.key_dim
        place = 4 * (head * s.value_dim + column)
        before, after = s.past + size * item, s.present + size * item
        for first in range(0, tokens, GROUP):
            some, row = min(tokens - first, GROUP), 4 * first * s.stride
            query, key = s.query + shared + row, s.key + shared + row
            token_numbers(
                query, key, s.stride, s.decay + 4 * (first * s.decay_stride + head), s.decay_stride,
                s.beta + 4 * (first * s.beta_stride + head), s.beta_stride, get_f32(s.rate + 4 * head),
                get_f32(s.bias + 4 * head), s.key_dim, s.epsilon, some, scratch,
            )  # fmt: skip
            delta_block(
                before, after, query, key, s.value + place + row, s.stride, s.key_dim, s.value_dim - column, some,
                scratch, s.out + place + 4 * first * width, width,
            )  # fmt: skip
            before = after
        item = fetch_add(counter, 1)


def delta_rule(kind, machine):
    """Driver of a DeltaRule."""

    @nb.njit(cache=True)
    def run(call, step, number, first, tokens, counter, thread, threads, scratch):
        run_delta_rule(read_step(kind, step), tokens, counter, scratch)

    return run
