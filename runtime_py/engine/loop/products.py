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
from runtime_py.engine.loop.dispatch import by_kind, by_width
from runtime_py.engine.steps.products import Dense, Grouped, GroupMatMul, MatMul, RazorMatMul, Sparse
from runtime_py.simd.atomics import fetch_add
from runtime_py.simd.integers import leading

# A matrix-vector product is shared out in two parts: most rows in one long run per thread, because memory is fastest
# read in a straight line, and the rest in small items, because threads do not finish together.
RUN_SHARE = 0.95
ITEM_BYTES = 65536  # codes that one of the small items reads
FLOAT_ROWS, GROUPED_ROWS = 64, 32  # of a work item

_matvec = by_width(matvec_rows)
_matmul = by_width(matmul_item)
_razor_vector = by_width(razor_rows)
_razor_matrix = by_width(razor_item)
_group_vector = by_width(group_rows, ("groups",))
_group_matrix = by_width(group_item, ("groups",))


def _int8_vector(s, isa, widths, first, last, scratch):
    arguments = (
        s.matrix, s.quant, s.sums, s.scales, s.high, first, last, s.out, s.bias, s.accumulate != 0, scratch
    )  # fmt: skip
    _matvec(isa, widths, s.width, arguments)


def _int8_tile(s, isa, widths, tile, item, tokens, threads, scratch):
    arguments = (
        tile, s.matrix, item, s.quant, s.sums, s.scales, s.high, tokens, s.out, s.bias, s.accumulate != 0, threads,
        scratch,
    )  # fmt: skip
    _matmul(isa, widths, s.width, arguments)


def _code_vector(s, isa, widths, first, last, scratch):
    arguments = (
        s.matrix, first, last, s.codes, s.sums, s.shifts, s.units, s.flags, s.flag_stride,
        leading(nb.int32(s.group)) - 1, s.places, s.out, s.bias, s.accumulate != 0, scratch,
    )  # fmt: skip
    _razor_vector(isa, widths, s.width, arguments)


def _code_tile(s, isa, widths, tile, item, tokens, threads, scratch):
    arguments = (
        s.matrix, item, s.codes, s.sums, s.shifts, s.units, s.flags, s.flag_stride, s.group, tokens, s.out, s.bias,
        s.accumulate != 0, scratch,
    )  # fmt: skip
    _razor_matrix(isa, widths, s.width, arguments)


def _group_vector_rows(s, isa, widths, first, last, scratch):
    arguments = (
        s.matrix, s.quant, s.scales, s.high, s.starts, s.shares, first, last, s.out, s.bias, s.accumulate != 0, scratch
    )  # fmt: skip
    _group_vector(isa, widths, s.width, arguments)


def _group_tile(s, isa, widths, tile, item, tokens, threads, scratch):
    arguments = (
        s.matrix, item, s.quant, s.scales, s.high, s.starts, tokens, s.out, s.bias, s.accumulate != 0, threads, scratch
    )  # fmt: skip
    _group_matrix(isa, widths, s.width, arguments)


def _int8_tile_rows(s, tile):
    return tile[0]


def _code_tile_rows(s, tile):
    return TILE_ROWS


def _group_tile_rows(s, tile):
    return GROUP_ROWS


_vector = by_kind({MatMul: _int8_vector, RazorMatMul: _code_vector, GroupMatMul: _group_vector_rows})
_tile = by_kind({MatMul: _int8_tile, RazorMatMul: _code_tile, GroupMatMul: _group_tile})
_tile_rows = by_kind({MatMul: _int8_tile_rows, RazorMatMul: _code_tile_rows, GroupMatMul: _group_tile_rows})


@nb.njit(cache=True)
def run_product(s, isa, widths, tile, tokens, thread, threads, counter, scratch):
    """A MatMul, RazorMatMul or GroupMatMul: runs of rows for one token, tiles of rows for several."""
    if tokens == 1:
        size = max(ITEM_BYTES // s.row_bytes, 1)
        run = int(RUN_SHARE * s.rows / threads)
        first, last = thread * run, (thread + 1) * run
        while first < s.rows:
            _vector(s, isa, widths, first, last, scratch)
            first = threads * run + fetch_add(counter, size)
            last = min(first + size, s.rows)
        return
    item = fetch_add(counter, 1)
    while item * _tile_rows(s, tile) < s.rows:
        _tile(s, isa, widths, tile, item, tokens, threads, scratch)
        item = fetch_add(counter, 1)


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
