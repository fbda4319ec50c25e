"""Drivers of what keeps a recurrent state, for single tokens of several texts: each with the state of its own text.

The kernels are those of a call for one token, so that what a token gets is what it gets alone, to the bit.
"""

from __future__ import annotations

import numba as nb

from runtime_py.engine.kernels.reading import read_call
from runtime_py.engine.kernels.recurrent.convolution import convolve, keep_products
from runtime_py.engine.kernels.recurrent.delta_net import convolve_rows, delta_block, keep_rows, token_numbers
from runtime_py.engine.kernels.recurrent.state_space import state_block, step_numbers
from runtime_py.engine.layout.recurrent import COLUMNS
from runtime_py.engine.loop.apart import quantize_part
from runtime_py.engine.loop.driver import read_step
from runtime_py.engine.records.call import CACHES
from runtime_py.simd.atomics import fetch_add
from runtime_py.simd.vectors import get_f32, get_i64


@nb.njit(cache=True, inline="always")
def _state_of(c, number, token):
    """Addresses of the state before and behind this token, of the state that the step has."""
    at = c.texts + c.stride * token + 8 * (CACHES + 2 * get_i64(c.layers + 8 * number))
    return get_i64(at), get_i64(at + 8)


def short_convolution(kind, machine):
    """Driver of a ShortConvolution: work items are blocks of 256 columns of all tokens."""
    isa, offset = machine.isa, machine.offset

    @nb.njit(cache=True)
    def run(call, step, number, first, tokens, counter, thread, threads, scratch):
        c, s = read_call(call), read_step(kind, step)
        b = fetch_add(counter, 1)
        while 256 * b < s.columns:
            begin, end = 256 * b, min(256 * b + 256, s.columns)
            for token in range(tokens):
                before, after = _state_of(c, number, token)
                row = 4 * token * s.stride
                inner, values, to = s.inner + row, s.values + row, s.out + 4 * token * s.columns
                convolve(
                    inner, values, s.outer + row, s.stride, before, s.columns, s.width, s.kernel, s.bias, 0, begin, end,
                    to,
                )  # fmt: skip
                keep_products(inner, values, s.stride, before, s.columns, s.width, 1, begin, end, after)
                if s.quant != 0:
                    quantize_part(s, isa, offset, to, token, b, tokens)
            b = fetch_add(counter, 1)

    return run


def causal_convolution(kind, machine):
    """Driver of a CausalConvolution: work items are blocks of 256 columns of all tokens."""

    @nb.njit(cache=True)
    def run(call, step, number, first, tokens, counter, thread, threads, scratch):
        c, s = read_call(call), read_step(kind, step)
        b = fetch_add(counter, 1)
        while 256 * b < s.columns:
            begin, end = 256 * b, min(256 * b + 256, s.columns)
            for token in range(tokens):
                before, after = _state_of(c, number, token)
                source, to = s.source + 4 * token * s.stride, s.out + 4 * token * s.columns
                convolve_rows(
                    source, s.stride, before, s.columns, s.width, s.kernel, s.bias, s.kind, 0, begin, end, to
                )  # fmt: skip
                keep_rows(source, s.stride, before, s.columns, s.width, 1, begin, end, after)
            b = fetch_add(counter, 1)

    return run


def delta_rule(kind, machine):
    """Driver of a DeltaRule: work items are blocks of the columns of each head's state of a token."""

    @nb.njit(cache=True)
    def run(call, step, number, first, tokens, counter, thread, threads, scratch):
        c, s = read_call(call), read_step(kind, step)
        blocks, width = (s.value_dim + COLUMNS - 1) // COLUMNS, s.value_heads * s.value_dim
        size = 4 * s.key_dim * COLUMNS
        each = s.value_heads * blocks
        item = fetch_add(counter, 1)
        while item < tokens * each:
            token, part = item // each, item % each
            head, column = part // blocks, part % blocks * COLUMNS
            before, after = _state_of(c, number, token)
            row = 4 * token * s.stride
            shared = row + 4 * (head // (s.value_heads // s.key_heads)) * s.key_dim
            place = 4 * (head * s.value_dim + column)
            token_numbers(
                s.query + shared, s.key + shared, s.stride, s.decay + 4 * (token * s.decay_stride + head),
                s.decay_stride, s.beta + 4 * (token * s.beta_stride + head), s.beta_stride, get_f32(s.rate + 4 * head),
                get_f32(s.bias + 4 * head), s.key_dim, s.epsilon, 1, scratch,
            )  # fmt: skip
            delta_block(
                before + size * part, after + size * part, s.query + shared, s.key + shared, s.value + row + place,
                s.stride, s.key_dim, s.value_dim - column, 1, scratch, s.out + place + 4 * token * width, width,
            )  # fmt: skip
            item = fetch_add(counter, 1)

    return run


def state_space(kind, machine):
    """Driver of a StateSpace: work items are blocks of the columns of each head's state of a token."""

    @nb.njit(cache=True)
    def run(call, step, number, first, tokens, counter, thread, threads, scratch):
        c, s = read_call(call), read_step(kind, step)
        blocks, width = (s.head_dim + COLUMNS - 1) // COLUMNS, s.heads * s.head_dim
        size = 4 * s.state_size * COLUMNS
        each = s.heads * blocks
        item = fetch_add(counter, 1)
        while item < tokens * each:
            token, part = item // each, item % each
            head, column = part // blocks, part % blocks * COLUMNS
            before, after = _state_of(c, number, token)
            row = 4 * token * s.stride
            shared = row + 4 * (head // (s.heads // s.groups)) * s.state_size
            place = 4 * (head * s.head_dim + column)
            step_numbers(
                s.step + 4 * (token * s.step_stride + head), s.step_stride, get_f32(s.rate + 4 * head),
                get_f32(s.bias + 4 * head), s.least, s.most, 1, scratch,
            )  # fmt: skip
            state_block(
                before + size * part, after + size * part, s.written + shared, s.read + shared, s.value + row + place,
                s.stride, s.state_size, s.head_dim - column, 1, get_f32(s.skip + 4 * head), scratch,
                s.out + place + 4 * token * width, width,
            )  # fmt: skip
            item = fetch_add(counter, 1)

    return run
