"""Drivers of products: rows of the matrix are shared out among the threads.

`s` are the values of a step (records/record.py); `counter` is the step's shared counter of work items.
"""

from __future__ import annotations

import numba as nb

from runtime_py.engine.kernels.elementwise import dense_rows, sparse_rows
from runtime_py.engine.kernels.grouped import grouped_rows
from runtime_py.engine.kernels.groups import GROUP_ROWS, group_item, group_rows
from runtime_py.engine.kernels.matmul import matmul_item
from runtime_py.engine.kernels.matvec import matvec_rows
from runtime_py.engine.kernels.razor_products import TILE_ROWS, razor_item, razor_rows
from runtime_py.engine.kernels.reading import read_call
from runtime_py.engine.loop.dispatch import by_kind
from runtime_py.engine.loop.driver import read_step
from runtime_py.engine.steps.products import Dense, Grouped, GroupMatMul, MatMul, RazorMatMul, Sparse
from runtime_py.simd.atomics import fetch_add
from runtime_py.simd.integers import leading

# A matrix-vector product is shared out in two parts: most rows in one long run per thread, because memory is fastest
# read in a straight line, and the rest in small items, because threads do not finish together.
RUN_SHARE = 0.95
ITEM_BYTES = 65536  # codes that one of the small items reads
FLOAT_ROWS, GROUPED_ROWS = 64, 32  # of a work item


def _int8_vector(s, isa, width, first, last, scratch):
    matvec_rows(
        isa, width,
        s.matrix, s.quant, s.sums, s.scales, s.high, first, last, s.out, s.bias, s.accumulate != 0, scratch
    )  # fmt: skip


def _int8_tile(s, isa, width, tile, item, tokens, threads, scratch):
    matmul_item(
        isa, width,
        tile, s.matrix, item, s.quant, s.sums, s.scales, s.high, tokens, s.out, s.bias, s.accumulate != 0, threads,
        scratch,
    )  # fmt: skip


def _code_vector(s, isa, width, first, last, scratch):
    razor_rows(
        isa, width,
        s.matrix, first, last, s.codes, s.sums, s.shifts, s.units, s.flags, s.flag_stride,
        leading(nb.int32(s.group)) - 1, s.places, s.out, s.bias, s.accumulate != 0, scratch,
    )  # fmt: skip


def _code_tile(s, isa, width, tile, item, tokens, threads, scratch):
    razor_item(
        isa, width,
        s.matrix, item, s.codes, s.sums, s.shifts, s.units, s.flags, s.flag_stride, s.group, tokens, s.out, s.bias,
        s.accumulate != 0, scratch,
    )  # fmt: skip


def _group_vector_rows(s, isa, width, first, last, scratch):
    group_rows(
        isa, width,
        s.matrix, s.quant, s.scales, s.high, s.starts, s.shares, first, last, s.out, s.bias, s.accumulate != 0, scratch
    )  # fmt: skip


def _group_tile(s, isa, width, tile, item, tokens, threads, scratch):
    group_item(
        isa, width,
        s.matrix, item, s.quant, s.scales, s.high, s.starts, tokens, s.out, s.bias, s.accumulate != 0, threads, scratch
    )  # fmt: skip


def _int8_tile_rows(s, tile):
    return tile[0]


def _code_tile_rows(s, tile):
    return TILE_ROWS


def _group_tile_rows(s, tile):
    return GROUP_ROWS


_vector = by_kind({MatMul: _int8_vector, RazorMatMul: _code_vector, GroupMatMul: _group_vector_rows})
_tile = by_kind({MatMul: _int8_tile, RazorMatMul: _code_tile, GroupMatMul: _group_tile})
_tile_rows = by_kind({MatMul: _int8_tile_rows, RazorMatMul: _code_tile_rows, GroupMatMul: _group_tile_rows})


def _grouped(s, tokens, first, last, scratch):
    grouped_rows(
        s.source, s.stride, tokens, s.matrix, s.groups, s.group_size, first, last, s.out, s.rows, s.bias,
        s.accumulate != 0, scratch,
    )  # fmt: skip


def _dense(s, tokens, first, last, scratch):
    dense_rows(
        s.source, tokens, s.stride, s.weights, s.item_bytes, s.columns, first, last, s.out, s.rows, s.bias,
        s.accumulate != 0,
    )  # fmt: skip


def _sparse(s, tokens, first, last, scratch):
    sparse_rows(
        s.source, tokens, s.stride, s.starts, s.columns, s.weights, first, last, s.out, s.rows, s.bias,
        s.accumulate != 0,
    )  # fmt: skip


_float_rows = by_kind({Grouped: _grouped, Dense: _dense, Sparse: _sparse})


@nb.njit(cache=True)
def run_rows(s, size, tokens, counter, scratch):
    """A Grouped, Dense or Sparse: work items are `size` rows."""
    first = fetch_add(counter, size)
    while first < s.rows:
        _float_rows(s, tokens, first, min(first + size, s.rows), scratch)
        first = fetch_add(counter, size)


def product(kind, machine):
    """Driver of a MatMul, RazorMatMul or GroupMatMul: runs of rows for one token, tiles of rows for several."""
    isa, width = machine.isa, machine.width

    @nb.njit(cache=True)
    def run(call, step, number, first, tokens, counter, thread, threads, scratch):
        c, s = read_call(call), read_step(kind, step)
        tile = (c.rows, c.vectors, c.amx != 0)
        if tokens == 1:
            size = max(ITEM_BYTES // s.row_bytes, 1)
            most = int(RUN_SHARE * s.rows / threads)
            row, last = thread * most, (thread + 1) * most
            while row < s.rows:
                _vector(s, isa, width, row, last, scratch)
                row = threads * most + fetch_add(counter, size)
                last = min(row + size, s.rows)
            return
        item = fetch_add(counter, 1)
        while item * _tile_rows(s, tile) < s.rows:
            _tile(s, isa, width, tile, item, tokens, threads, scratch)
            item = fetch_add(counter, 1)

    return run


def grouped_product(kind, machine):
    """Driver of a Grouped."""

    @nb.njit(cache=True)
    def run(call, step, number, first, tokens, counter, thread, threads, scratch):
        run_rows(read_step(kind, step), GROUPED_ROWS, tokens, counter, scratch)

    return run


def float_product(kind, machine):
    """Driver of a Dense or Sparse."""

    @nb.njit(cache=True)
    def run(call, step, number, first, tokens, counter, thread, threads, scratch):
        run_rows(read_step(kind, step), FLOAT_ROWS, tokens, counter, scratch)

    return run
