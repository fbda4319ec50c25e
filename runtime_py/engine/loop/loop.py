"""Runs the step table: one compiled function that every thread of the pool executes from the first step to the last.

Threads take work items of a step from a shared counter and wait at a barrier where a step needs what an earlier one
wrote. Nothing here allocates, checks bounds or knows of models.
"""

from __future__ import annotations

import numba as nb

from runtime_py.engine.loop.adapters import run_adapter_down, run_adapter_up
from runtime_py.engine.loop.attention import run_attention, run_razor_kv_append
from runtime_py.engine.loop.blocks import run_blocks, run_norm
from runtime_py.engine.loop.delta_net import run_delta_rule
from runtime_py.engine.loop.experts import run_expert_floats, run_experts
from runtime_py.engine.loop.integer_attention import run_integer_append
from runtime_py.engine.loop.products import FLOAT_ROWS, GROUPED_ROWS, RUN_SHARE, run_product, run_rows
from runtime_py.engine.loop.state_space import run_state_space
from runtime_py.engine.loop.tokens import run_tokens
from runtime_py.engine.records.record import reader
from runtime_py.engine.records.stored_matrix import read_matrix
from runtime_py.engine.steps import table
from runtime_py.engine.steps.table import ARGUMENTS, STEP
from runtime_py.simd.atomics import barrier
from runtime_py.simd.tile import amx_configure, amx_release
from runtime_py.simd.vectors import prefetch

_LOOK_AHEAD = 2  # steps in which a coming product is looked for
_APPROACH_BYTES = 32768

_head = reader(table.Head)
(
    _embed, _embed_dense, _norm, _quantize, _matmul, _grouped, _dense, _activate, _add, _kv_append, _attend, _scale,
    _reorder, _razor, _razor_matmul, _razor_kv_append, _razor_attend, _sparse, _group_matmul, _embed_groups,
    _rotate,
    _route, _expert_matmul, _combine, _short_convolution, _causal_convolution, _delta_rule, _expert_grouped,
    _expert_dense, _adapter_down, _adapter_up, _state_space, _integer_kv_append,
    _integer_attend,
) = (reader(kind, ARGUMENTS) for kind in table.KINDS)  # fmt: skip


@nb.njit(cache=True)
def _approach(step, left, thread, threads):
    """Ask for the first codes that this thread will read in the next matrix-vector product, while memory is idle."""
    for ahead in range(1, min(left, _LOOK_AHEAD + 1)):
        later = step + 8 * STEP * ahead
        operation = _head(later).operation
        if operation == table.MATMUL:
            s = _matmul(later)
            _fetch(s, thread, threads)
            return
        if operation == table.GROUP_MATMUL:
            g = _group_matmul(later)
            _fetch(g, thread, threads)
            return
        if operation == table.RAZOR_MATMUL:
            r = _razor_matmul(later)
            _fetch(r, thread, threads)
            return


@nb.njit(cache=True, inline="always")
def _fetch(s, thread, threads):
    start = read_matrix(s.matrix).codes + thread * int(RUN_SHARE * s.rows / threads) * s.row_bytes
    for line in range(0, min(_APPROACH_BYTES, s.rows * s.row_bytes // threads), 64):
        prefetch(start + line)


@nb.njit(cache=True, inline="always")
def _run_rare(operation, isa, offset, step, past, tokens, thread, counter, scratch):
    """Steps that most models lack, and those that treat tokens one by one."""
    if operation == table.QUANTIZE:
        run_blocks(_quantize(step), isa, offset, tokens, counter, scratch)
    elif operation == table.GROUPED:
        run_rows(_grouped(step), GROUPED_ROWS, tokens, counter, scratch)
    elif operation == table.DENSE:
        run_rows(_dense(step), FLOAT_ROWS, tokens, counter, scratch)
    elif operation == table.SPARSE:
        run_rows(_sparse(step), FLOAT_ROWS, tokens, counter, scratch)
    elif operation == table.RAZOR:
        run_blocks(_razor(step), isa, offset, tokens, counter, scratch)
    elif operation == table.RAZOR_KV_APPEND:
        run_razor_kv_append(_razor_kv_append(step), past, tokens, counter, scratch)
    elif operation == table.RAZOR_ATTEND:
        run_attention(_razor_attend(step), isa, past, tokens, thread, counter, scratch)
    elif operation == table.INTEGER_KV_APPEND:
        run_integer_append(_integer_kv_append(step), past, tokens, counter, scratch)
    elif operation == table.INTEGER_ATTEND:
        run_attention(_integer_attend(step), isa, past, tokens, thread, counter, scratch)
    elif operation == table.SHORT_CONVOLUTION:
        run_blocks(_short_convolution(step), isa, offset, tokens, counter, scratch)
    elif operation == table.CAUSAL_CONVOLUTION:
        run_blocks(_causal_convolution(step), isa, offset, tokens, counter, scratch)
    elif operation == table.DELTA_RULE:
        run_delta_rule(_delta_rule(step), tokens, counter, scratch)
    elif operation == table.STATE_SPACE:
        run_state_space(_state_space(step), tokens, counter, scratch)
    elif operation == table.EXPERT_GROUPED:
        run_expert_floats(_expert_grouped(step), tokens, counter, scratch)
    elif operation == table.ADAPTER_DOWN:
        run_adapter_down(_adapter_down(step), tokens, 0, 0, 0, counter)
    elif operation == table.ADAPTER_UP:
        run_adapter_up(_adapter_up(step), tokens, 0, 0, 0, counter)
    elif operation == table.EXPERT_DENSE:
        run_expert_floats(_expert_dense(step), tokens, counter, scratch)
    elif operation == table.EMBED:
        run_tokens(_embed(step), past, tokens, counter, scratch)
    elif operation == table.EMBED_GROUPS:
        run_tokens(_embed_groups(step), past, tokens, counter, scratch)
    elif operation == table.EMBED_DENSE:
        run_tokens(_embed_dense(step), past, tokens, counter, scratch)
    elif operation == table.SCALE:
        run_tokens(_scale(step), past, tokens, counter, scratch)
    elif operation == table.REORDER:
        run_tokens(_reorder(step), past, tokens, counter, scratch)
    elif operation == table.ROTATE:
        run_tokens(_rotate(step), past, tokens, counter, scratch)
    elif operation == table.ADD:
        run_tokens(_add(step), past, tokens, counter, scratch)
    elif operation == table.ROUTE:
        run_tokens(_route(step), past, tokens, counter, scratch)
    elif operation == table.COMBINE:
        run_tokens(_combine(step), past, tokens, counter, scratch)
    else:
        run_tokens(_kv_append(step), past, tokens, counter, scratch)


@nb.njit(cache=True, nogil=True)
def run_steps(
    isa, widths, offset, tile, config, steps, count, tokens, past, last_only, counters, gate, thread, threads, scratch
):
    """Run all steps as thread number `thread` of `threads`.

    offset: the instruction set's weight offset. tile: (rows, vectors, AMX). config: address of the AMX configuration.
    steps: address of int64 [count, STEP]. counters: address of int64 [count], all zero. gate: of the barrier, two
    zeroed int64, 64 bytes apart. scratch: this thread's own.
    """
    if tile[2]:
        amx_configure(config)
    for i in range(count):
        step = steps + 8 * STEP * i
        counter = counters + 8 * i
        head = _head(step)
        operation = head.operation
        product = (
            operation == table.MATMUL or operation == table.GROUP_MATMUL or operation == table.RAZOR_MATMUL
        )  # fmt: skip
        if head.barrier != 0:
            if tokens == 1 and not product:
                _approach(step, count - i, thread, threads)
            barrier(gate, threads)
        first, some = 0, tokens
        if last_only and head.last != 0:
            first, some = tokens - 1, 1
        if operation == table.MATMUL:
            run_product(_matmul(step), isa, widths, tile, some, thread, threads, counter, scratch)
        elif operation == table.NORM:
            run_norm(_norm(step), isa, offset, first, some, counter, scratch)
        elif operation == table.ACTIVATE:
            run_blocks(_activate(step), isa, offset, some, counter, scratch)
        elif operation == table.ATTEND:
            run_attention(_attend(step), isa, past, some, thread, counter, scratch)
        elif operation == table.GROUP_MATMUL:
            run_product(_group_matmul(step), isa, widths, tile, some, thread, threads, counter, scratch)
        elif operation == table.RAZOR_MATMUL:
            run_product(_razor_matmul(step), isa, widths, tile, some, thread, threads, counter, scratch)
        elif operation == table.EXPERT_MATMUL:
            run_experts(_expert_matmul(step), isa, widths, tile, offset, some, threads, counter, scratch)
        else:
            _run_rare(operation, isa, offset, step, past, some, thread, counter, scratch)
    barrier(gate, threads)
    if tile[2]:
        amx_release()
