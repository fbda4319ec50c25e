"""Drivers of norms, activations, quantization and short convolutions.

Work items are up to 16 tokens, which share lines of the cache.
"""

from __future__ import annotations

import numba as nb

from runtime_py.engine.kernels.elementwise import activate, clamped_gate, layer_norm, rms_norm
from runtime_py.engine.kernels.quantize import group_sums, quantize_group, quantize_token, token_shares
from runtime_py.engine.kernels.razor import razor_group_of_tokens, razor_token
from runtime_py.engine.kernels.recurrent.convolution import convolve, keep_products
from runtime_py.engine.kernels.recurrent.delta_net import convolve_rows, keep_rows
from runtime_py.engine.kernels.tender import tender_group_of_tokens, tender_token
from runtime_py.engine.layout.functions import CLAMPED
from runtime_py.engine.loop.dispatch import by_kind
from runtime_py.engine.loop.driver import read_step
from runtime_py.engine.steps.convolution import ShortConvolution
from runtime_py.engine.steps.delta_net import CausalConvolution
from runtime_py.engine.steps.elementwise import LAYER, Activate
from runtime_py.engine.steps.integers import Quantize, Razor, Tender
from runtime_py.simd.atomics import fetch_add


@nb.njit(cache=True)
def _quantize(s, isa, offset, source, stride, group, tokens, first, last, scratch):
    """Blocks first..last - 1 of a step with int8 parts."""
    if tokens == 1:
        quantize_token(isa, offset, source, s.columns, first, last, s.quant, s.sums, s.scales, s.high)
    else:
        quantize_group(
            isa, offset, source, stride, s.columns, group, tokens, first, last, s.quant, s.sums, s.scales, s.high,
            scratch,
        )  # fmt: skip
    if s.group != 0 and tokens == 1:
        token_shares(isa, offset, s.columns, first, last, s.group, s.quant, s.scales, s.high, s.starts, s.shares)
    elif s.group != 0:
        group_sums(isa, s.columns, group, first, last, s.group, s.quant, s.high, s.starts)


def _quantize_block(s, isa, offset, group, b, tokens, scratch):
    _quantize(s, isa, offset, s.source, s.stride, group, tokens, b, b + 1, scratch)


def _razor_block(s, isa, offset, group, b, tokens, scratch):
    if tokens == 1:
        razor_token(
            isa, offset, s.source, s.columns, s.group, s.unit, s.form, b, b + 1, s.codes, s.sums, s.shifts, s.units,
            scratch,
        )  # fmt: skip
    else:
        razor_group_of_tokens(
            isa, offset, s.source, s.stride, s.columns, s.group, s.unit, s.form, group, tokens, b, b + 1, s.codes,
            s.sums, s.shifts, s.units, scratch,
        )  # fmt: skip


def _tender_block(s, isa, offset, group, b, tokens, scratch):
    if tokens == 1:
        tender_token(
            isa, offset, s.source, s.columns, s.places, s.group, s.unit, s.limit, s.order, s.middle, s.steps, s.raised,
            b, b + 1, s.codes, s.sums, s.shifts, s.units, scratch,
        )  # fmt: skip
    else:
        tender_group_of_tokens(
            isa, offset, s.source, s.stride, s.columns, s.places, s.group, s.unit, s.limit, s.order, s.middle, s.steps,
            s.raised, group, tokens, b, b + 1, s.codes, s.sums, s.shifts, s.units, scratch,
        )  # fmt: skip


def _activate_block(s, isa, offset, group, b, tokens, scratch):
    some = min(s.columns - 256 * b, 256)
    for token in range(16 * group, min(16 * group + 16, tokens)):
        other = s.gated + 4 * (token * s.gated_stride + 256 * b) if s.gated != 0 else 0
        to = s.out + 4 * (token * s.columns + 256 * b)
        source = s.source + 4 * (token * s.stride + 256 * b)
        if s.kind == CLAMPED:
            clamped_gate(source, other, some, s.alpha, s.limit, to)
        else:
            activate(s.kind, source, other, some, to)
    if s.quant != 0:
        _quantize(s, isa, offset, s.out, s.columns, group, tokens, b, b + 1, scratch)


def _convolve_block(s, isa, offset, group, b, tokens, scratch):
    first, last = 256 * b, min(256 * b + 256, s.columns)
    for token in range(16 * group, min(16 * group + 16, tokens)):
        to = s.out + 4 * token * s.columns
        convolve(
            s.inner, s.values, s.outer, s.stride, s.past, s.columns, s.width, s.kernel, s.bias, token, first, last, to
        )  # fmt: skip
    if 16 * group + 16 >= tokens:
        keep_products(s.inner, s.values, s.stride, s.past, s.columns, s.width, tokens, first, last, s.present)
    if s.quant != 0:
        _quantize(s, isa, offset, s.out, s.columns, group, tokens, b, b + 1, scratch)


def _causal_convolution_block(s, isa, offset, group, b, tokens, scratch):
    first, last = 256 * b, min(256 * b + 256, s.columns)
    for token in range(16 * group, min(16 * group + 16, tokens)):
        to = s.out + 4 * token * s.columns
        convolve_rows(s.source, s.stride, s.past, s.columns, s.width, s.kernel, s.bias, s.kind, token, first, last, to)
    if 16 * group + 16 >= tokens:
        keep_rows(s.source, s.stride, s.past, s.columns, s.width, tokens, first, last, s.present)


def _columns(s):
    return s.columns


def _places(s):
    return s.places


_made = by_kind(
    {Quantize: _columns, Razor: _columns, Tender: _places, Activate: _columns, ShortConvolution: _columns,
     CausalConvolution: _columns}
)  # fmt: skip
_block = by_kind(
    {
        Quantize: _quantize_block,
        Razor: _razor_block,
        Tender: _tender_block,
        Activate: _activate_block,
        ShortConvolution: _convolve_block,
        CausalConvolution: _causal_convolution_block,
    }
)


def blocks(kind, machine):
    """Driver of a Quantize, Razor, Tender, Activate, ShortConvolution or CausalConvolution.

    Work items are blocks of 256 columns of 16 tokens, so that one token still keeps all threads busy.
    """
    isa, offset = machine.isa, machine.offset

    @nb.njit(cache=True)
    def run(call, step, number, first, tokens, counter, thread, threads, scratch):
        s = read_step(kind, step)
        parts = (_made(s) + 255) // 256
        item = fetch_add(counter, 1)
        while item < (tokens + 15) // 16 * parts:
            _block(s, isa, offset, item // parts, item % parts, tokens, scratch)
            item = fetch_add(counter, 1)

    return run


def norm(kind, machine):
    """Driver of a Norm, which needs all of a row: work items are 16 tokens."""
    isa, offset = machine.isa, machine.offset

    @nb.njit(cache=True)
    def run(call, step, number, first, tokens, counter, thread, threads, scratch):
        s = read_step(kind, step)
        parts = (s.columns + 255) // 256
        group = fetch_add(counter, 1)
        while 16 * group < tokens:
            for token in range(16 * group, min(16 * group + 16, tokens)):
                for head in range(s.heads):
                    x = s.source + 4 * ((first + token) * s.stride + head * s.columns)
                    y = s.out + 4 * (token * s.heads + head) * s.columns
                    if s.kind == LAYER:
                        layer_norm(x, s.scale + 4 * head * s.scale_stride, s.bias, s.columns, s.epsilon, y)
                    else:
                        rms_norm(x, s.scale + 4 * head * s.scale_stride, s.columns, s.epsilon, y)
            if s.quant != 0:
                _quantize(s, isa, offset, s.out, s.columns, group, tokens, 0, parts, scratch)
            group = fetch_add(counter, 1)

    return run
