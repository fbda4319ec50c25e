"""The integer operators: razored activations, activations in channel groups, products of codes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from export.artefacts.graph import Node
from export.contract.errors import InputError
from export.contract.formats.codebook import DOMAIN
from export.contract.operators.integers import SDR_MATMUL, SDR_QUANTIZE
from export.contract.operators.tender import TENDER_QUANTIZE
from runtime_py.engine.layout.razor import flag_places, largest_sums
from runtime_py.engine.plan.context import Context
from runtime_py.engine.plan.placement import Argument
from runtime_py.engine.plan.registry import handles
from runtime_py.engine.plan.values import Razored, form_of
from runtime_py.engine.records.errors import Unplannable
from runtime_py.engine.steps.integers import Razor, Tender
from runtime_py.engine.steps.products import RazorMatMul

_GROUPS = (16, 32, 64, 128, 256)


@handles(DOMAIN, SDR_QUANTIZE)
def quantize(context: Context, node: Node) -> None:
    x, form = context.tokens(node.inputs[0]), node.sdr_format()
    unit = np.asarray(context.folder.constant(node.inputs[1]), np.float32)
    if unit.shape != (1,) or not (np.isfinite(unit).all() and unit[0] > 0):
        raise InputError(f"node {node.name}: its unit must be one positive number")
    if form.width > 8 or form.group_size not in _GROUPS or x.column or x.heads != 1:
        raise Unplannable(f"activations of {form.width} bits in groups of {form.group_size} ({node.name})")
    if form.lowest_code < -127:  # beyond what dot() of simd/lowering.py takes: plain AVX2 has no byte for +128
        raise Unplannable(f"{form.variant} activations of 8 bits ({node.name})")
    made = Razored.of(x.width, form.group_size, context.chunk)
    step = Razor[Argument](
        source=x.place,
        stride=x.stride,
        columns=x.width,
        group=form.group_size,
        unit=0.0 if node.attributes["per_token"] else float(unit[0]),
        form=form_of(form),
        codes=made.codes,
        sums=made.sums,
        shifts=made.shifts,
        units=made.units,
    )
    context.emit(step, [x.buffer], [made.buffer])
    for name in node.outputs:
        context.razored[name] = made


@handles(DOMAIN, TENDER_QUANTIZE)
def grouped(context: Context, node: Node) -> None:
    x, form = context.tokens(node.inputs[0]), node.tender_format()
    order, middle, shifts, unit = (np.asarray(context.folder.constant(name)) for name in node.inputs[1:5])
    try:
        form.check(x.width, order, middle, shifts, unit)
    except ValueError as error:
        raise InputError(f"node {node.name}: {error}") from None
    if form.group_size not in _GROUPS or x.column or x.heads != 1:
        raise Unplannable(f"channel groups in runs of {form.group_size} ({node.name})")
    channels = (order.reshape(-1, form.group_size) >= 0).sum(axis=1)
    most = largest_sums(form.limit * 2 ** shifts.astype(object), channels, form.group_size)
    made = replace(Razored.of(order.size, form.group_size, context.chunk), most=most)
    step = Tender[Argument](
        source=x.place,
        stride=x.stride,
        columns=x.width,
        places=order.size,
        group=form.group_size,
        unit=float(unit[0]),
        limit=form.limit,
        order=context.stored(order.astype(np.int64)),
        middle=context.stored(middle),
        steps=context.stored(unit[0] * (2.0 ** shifts.astype(np.float32)).astype(np.float32)),
        raised=context.stored(shifts.astype(np.int32)),
        codes=made.codes,
        sums=made.sums,
        shifts=made.shifts,
        units=made.units,
    )
    context.emit(step, [x.buffer], [made.buffer])
    for name in node.outputs:
        context.razored[name] = made


@handles(DOMAIN, SDR_MATMUL)
def product(context: Context, node: Node) -> None:
    x, layout = context.razored.get(node.inputs[0]), node.integer_layout()
    same = x is not None and all(context.razored.get(name) is x for name in node.inputs[1:3])
    if x is None or not same or x.columns != layout.K or x.group != layout.group_size:
        raise Unplannable(f"the activations of {node.name}")
    codes, book, flags = (context.graph.weights[name] for name in node.inputs[3:6])
    address, width = context.record(node, layout.stored(), (node.inputs[3], node.inputs[4], node.inputs[6]))
    stride = flags.shape[1] if flags.shape[0] == layout.N else 0
    if int((flags & 15).max(initial=0)) > 4 or int((flags >> 4).max(initial=0)) > 4:
        raise Unplannable(f"razored weights with flags beyond 4 ({node.name})")
    if x.most is not None:
        largest = int(np.abs(book.astype(np.int64)).max()) << int(max((flags & 15).max(), (flags >> 4).max()))
        if x.most[0] * largest >= 2**31 or x.most[1] * largest >= 2**39:
            raise Unplannable(f"channel groups whose sums leave 32 bits ({node.name})")
    if stride and int(np.abs(book.astype(np.int64)).max()) > 8:
        raise Unplannable(f"razored weights of more than 4 bits ({node.name})")
    # Flags are read two bytes at a time: where that may go beyond the last one, a copy has room for it.
    if layout.group_size != 16 or layout.K % 64:
        wide = np.zeros(flags.size + 2, np.uint8)
        wide[: flags.size] = flags.reshape(-1)
        flags = wide
    context.bytes_per_token += codes.nbytes + book.nbytes + flags.nbytes
    out = context.new(layout.N)
    context.widest = max(context.widest, layout.K)
    step = RazorMatMul[Argument](
        matrix=address,
        width=width,
        codes=x.codes,
        sums=x.sums,
        shifts=x.shifts,
        units=x.units,
        out=out.place,
        rows=layout.N,
        row_bytes=layout.stored().codes_shape[1],
        flags=context.stored(flags),
        flag_stride=stride,
        group=layout.group_size,
        places=context.stored(flag_places(layout.group_size)),
    )
    context.emit(step, [x.buffer], [out.buffer])
    context.give(node.outputs[0], out)
