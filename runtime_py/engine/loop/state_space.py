"""The driver of state spaces: work items are blocks of the columns of each head's state, which all tokens pass."""

from __future__ import annotations

import numba as nb

from runtime_py.engine.kernels.recurrent.state_space import state_block, step_numbers
from runtime_py.engine.layout.recurrent import COLUMNS, GROUP
from runtime_py.engine.loop.driver import read_step
from runtime_py.simd.atomics import fetch_add
from runtime_py.simd.vectors import get_f32


@nb.njit(cache=True)
def run_state_space(s, tokens, counter, scratch):
    """A StateSpace."""
    blocks, width = (s.head_dim + COLUMNS - 1) // COLUMNS, s.heads * s.head_dim
    size = 4 * s.state_size * COLUMNS
    item = fetch_add(counter, 1)
    while item < s.heads * blocks:
        head, column = item // blocks, item % blocks * COLUMNS
        shared = 4 * (head // (s.heads // s.groups)) * s.state_size
        place = 4 * (head * s.head_dim + column)
        before, after = s.past + size * item, s.present + size * item
        for first in range(0, tokens, GROUP):
            some, row = min(tokens - first, GROUP), 4 * first * s.stride
            step_numbers(
                s.step + 4 * (first * s.step_stride + head), s.step_stride, get_f32(s.rate + 4 * head),
                get_f32(s.bias + 4 * head), s.least, s.most, some, scratch,
            )  # fmt: skip
            state_block(
                before, after, s.written + shared + row, s.read + shared + row, s.value + place + row, s.stride,
                s.state_size, s.head_dim - column, some, get_f32(s.skip + 4 * head), scratch,
                s.out + place + 4 * first * width, width,
            )  # fmt: skip
            before = after
        item = fetch_add(counter, 1)


def state_space(kind, machine):
    """Driver of a StateSpace."""

    @nb.njit(cache=True)
    def run(call, step, number, first, tokens, counter, thread, threads, scratch):
        run_state_space(read_step(kind, step), tokens, counter, scratch)

    return run
