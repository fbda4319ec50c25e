"""Drivers of adapters' terms. Work items are a few rows of the factors for up to 16 tokens.

`texts` is 0 where all tokens are of one text, whose adapter the step names, else the address of the rows of the tokens'
texts (loop/apart.py), `stride` bytes apart, with that of each text's records `at` bytes from their beginning.
"""

from __future__ import annotations

import numba as nb

from runtime_py.engine.kernels.adapters.low_rank import down, up
from runtime_py.engine.kernels.reading import reader
from runtime_py.engine.layout.factors import ROWS
from runtime_py.engine.loop.driver import read_step
from runtime_py.engine.records.term import TERM, Term
from runtime_py.simd.atomics import fetch_add
from runtime_py.simd.vectors import get_i64

_ITEM = 256  # columns of b
_TOKENS = 16

_term = reader(Term)


@nb.njit(cache=True, inline="always")
def _record(s, texts, stride, at, token):
    """Address of the record of a token's adapter."""
    terms = get_i64(texts + stride * token + at) if texts != 0 else s.terms
    return terms + 8 * TERM * s.slot


@nb.njit(cache=True)
def _largest_rank(s, texts, stride, at, tokens):
    if texts == 0:
        return get_i64(s.terms + 8 * TERM * s.slot)
    largest = nb.int64(0)
    for token in range(tokens):
        largest = max(largest, get_i64(_record(s, texts, stride, at, token)))
    return largest


@nb.njit(cache=True)
def run_adapter_down(s, tokens, texts, stride, at, counter):
    groups = (_largest_rank(s, texts, stride, at, tokens) + ROWS - 1) // ROWS
    if groups == 0:
        return
    item, blocks = fetch_add(counter, 1), (tokens + _TOKENS - 1) // _TOKENS
    while item < groups * blocks:
        first = item % groups * ROWS
        begin = item // groups * _TOKENS
        for token in range(begin, min(begin + _TOKENS, tokens)):
            m = _term(_record(s, texts, stride, at, token))
            if first < m.rank:
                x, t = s.source + 4 * token * s.stride, s.out + 4 * token * s.most
                last = min(first + ROWS, m.rank)
                down(x, s.columns, m.a, m.a_scales, m.item_bytes, m.a_bias, m.activation, first, last, t)
        item = fetch_add(counter, 1)


@nb.njit(cache=True)
def run_adapter_up(s, tokens, texts, stride, at, counter):
    if _largest_rank(s, texts, stride, at, tokens) == 0:
        return
    parts, blocks = (s.rows + _ITEM - 1) // _ITEM, (tokens + _TOKENS - 1) // _TOKENS
    item = fetch_add(counter, 1)
    while item < parts * blocks:
        first = item % parts * _ITEM
        begin = item // parts * _TOKENS
        for token in range(begin, min(begin + _TOKENS, tokens)):
            m = _term(_record(s, texts, stride, at, token))
            if m.rank > 0:
                t, y = s.source + 4 * token * s.most, s.out + 4 * token * s.rows
                last = min(first + _ITEM, s.rows)
                up(t, m.rank, m.b, m.b_scales, m.item_bytes, m.b_bias, s.rows, first, last, y)
        item = fetch_add(counter, 1)


def adapter_down(kind, machine):
    """Driver of an AdapterDown."""

    @nb.njit(cache=True)
    def run(call, step, number, first, tokens, counter, thread, threads, scratch):
        run_adapter_down(read_step(kind, step), tokens, 0, 0, 0, counter)

    return run


def adapter_up(kind, machine):
    """Driver of an AdapterUp."""

    @nb.njit(cache=True)
    def run(call, step, number, first, tokens, counter, thread, threads, scratch):
        run_adapter_up(read_step(kind, step), tokens, 0, 0, 0, counter)

    return run
