"""Steps that treat tokens one by one."""

from __future__ import annotations

import numba as nb

from runtime_py.engine.kernels.attention.kv_append import append_token
from runtime_py.engine.kernels.elementwise import add_rows, dense_row, reorder_row, rotated_row, scale_row
from runtime_py.engine.kernels.experts import combine_row, route, route_by_sigmoid, scale_by_expert
from runtime_py.engine.kernels.grouped import grouped_row
from runtime_py.engine.kernels.groups import group_row
from runtime_py.engine.kernels.reading import read_call
from runtime_py.engine.loop.dispatch import by_kind
from runtime_py.engine.loop.driver import read_step
from runtime_py.engine.steps.attention import KvAppend, Rotate
from runtime_py.engine.steps.elementwise import Add, Scale
from runtime_py.engine.steps.experts import Combine, Route
from runtime_py.engine.steps.lookups import Embed, EmbedDense, EmbedGroups, Reorder
from runtime_py.simd.atomics import fetch_add
from runtime_py.simd.vectors import get_i64


def _embed(s, past, token, scratch):
    row, to = get_i64(s.ids + 8 * token), s.out + 4 * token * s.columns
    grouped_row(s.matrix, s.groups, s.group_size, row, to, scratch)


def _embed_groups(s, past, token, scratch):
    row, to = get_i64(s.ids + 8 * token), s.out + 4 * token * s.columns
    group_row(s.matrix, s.group, s.scale_bytes, row, to, scratch)


def _embed_dense(s, past, token, scratch):
    row, to = get_i64(s.ids + 8 * token), s.out + 4 * token * s.columns
    dense_row(s.table, s.item_bytes, row, s.columns, to)


def _scale(s, past, token, scratch):
    scale_row(s.source + 4 * token * s.stride, s.factor, s.columns, s.out + 4 * token * s.columns)


def _reorder(s, past, token, scratch):
    reorder_row(s.source + 4 * token * s.stride, s.order, s.columns, s.out + 4 * token * s.columns)


def _add(s, past, token, scratch):
    a, b = s.a + 4 * token * s.a_stride, s.b + 4 * token * s.b_stride
    add_rows(a, b, s.columns, s.out + 4 * token * s.columns)


def _rotate(s, past, token, scratch):
    row, width = 4 * (past + token) * s.half, s.heads * s.head_dim
    source, to = s.source + 4 * token * s.stride, s.out + 4 * token * width
    rotated_row(source, s.heads, s.head_dim, s.cos + row, s.sin + row, s.half, s.interleaved, to)


def _route(s, past, token, scratch):
    weights, picked = s.weights + 4 * token * s.count, s.picked + 8 * token * s.count
    source = s.source + 4 * token * s.stride
    if s.sigmoid != 0:
        route_by_sigmoid(
            source, s.biases, s.experts, s.count, s.normalised, s.floor, s.scale, weights, picked, scratch
        )  # fmt: skip
    else:
        route(source, s.experts, s.count, s.normalised, s.floor, s.scale, weights, picked)
    if s.own_scales != 0:
        scale_by_expert(weights, picked, s.count, s.own_scales)


def _combine(s, past, token, scratch):
    weights, to = s.weights + 4 * token * s.count, s.out + 4 * token * s.columns
    combine_row(s.source + 4 * token * s.stride, weights, s.count, s.columns, to)


def _kv_append(s, past, token, scratch):
    position = past + token
    row = 4 * position * s.half
    append_token(
        s.query + 4 * token * s.query_stride, s.key + 4 * token * s.key_stride, s.value + 4 * token * s.value_stride,
        s.cos + row, s.sin + row, s.half, s.keys, s.values, s.key_item, s.value_item, s.key_block, s.capacity, s.heads,
        s.kv_heads, s.head_dim, position, s.overflow,
    )  # fmt: skip


one_token = by_kind(
    {
        Embed: _embed,
        EmbedGroups: _embed_groups,
        EmbedDense: _embed_dense,
        Scale: _scale,
        Reorder: _reorder,
        Add: _add,
        Rotate: _rotate,
        Route: _route,
        Combine: _combine,
        KvAppend: _kv_append,
    }
)


def by_token(kind, machine):
    """Driver of the steps above: 16 neighbours are one work item, because they share lines of the cache."""

    @nb.njit(cache=True)
    def run(call, step, number, first, tokens, counter, thread, threads, scratch):
        s, past = read_step(kind, step), read_call(call).past
        begin = 16 * fetch_add(counter, 1)
        while begin < tokens:
            for token in range(begin, min(begin + 16, tokens)):
                one_token(s, past, token, scratch)
            begin = 16 * fetch_add(counter, 1)

    return run
