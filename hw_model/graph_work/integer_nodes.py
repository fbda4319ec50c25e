"""The work of the integer operators: razored codes and those of channel groups are counted at their own width."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from export.artefacts.graph import Node
from export.contract.errors import InputError
from export.contract.operators.attention import AttentionLayout
from export.contract.operators.bit_planes import BIT_PLANE_MATMUL, BitPlaneLayout
from export.contract.operators.integers import SDR_ATTENTION, SDR_MATMUL, SDR_QUANTIZE, IntegerLayout
from export.contract.operators.tender import TENDER_QUANTIZE
from hw_model.graph_work.attention_nodes import attention, causal_pairs, window_of
from hw_model.graph_work.context import Context
from hw_model.graph_work.nodes import linear
from hw_model.graph_work.operation import ACTIVATION_BYTES, QUANTIZE_OPS, Operation

TENDER_OPS, _TENDER_QUANTIZE_OPS = 5, 3  # of a place: read the channel, subtract the middle; scale, round, clip


def _quantize(node: Node, context: Context) -> Operation:
    elements = context.elements(node.inputs[0])
    coded = round(elements * node.sdr_format().effective_bits / 8)
    return Operation(
        node.name, "quantization", vector_ops=QUANTIZE_OPS * elements, weight_bytes=context.weight_bytes(node),
        activation_bytes=ACTIVATION_BYTES * elements + coded, quantized=elements,
    )  # fmt: skip


def _group(node: Node, context: Context) -> Operation:
    form, elements = node.tender_format(), context.elements(node.outputs[0])
    coded = round(elements * form.width / 8)
    return Operation(
        node.name, "quantization", vector_ops=TENDER_OPS * elements, weight_bytes=context.weight_bytes(node),
        activation_bytes=ACTIVATION_BYTES * context.elements(node.inputs[0]) + coded, quantized=elements,
        quantize_ops=_TENDER_QUANTIZE_OPS,
    )  # fmt: skip


def _planes(node: Node, context: Context) -> Operation:
    layout = node.attributes_as(BitPlaneLayout.of)
    found = linear(node, context, layout.N, layout.K)
    made = found.macs // layout.N  # codes
    return replace(found, vector_ops=QUANTIZE_OPS * made, quantized=made, plane_bits=layout.p, input_bits=layout.q)


def _shifted(node: Node, layout: IntegerLayout, context: Context) -> Operation | None:
    """A product of activations in channel groups; None where they are razored."""
    maker = context.makers.get(node.inputs[0])
    if maker is None or maker.op_type != TENDER_QUANTIZE:
        return None
    shifts = context.graph.weights.get(maker.inputs[3])
    if shifts is None or shifts.size == 0:
        raise InputError(f"node {maker.name}: its shifts are no constant")
    found = linear(node, context, layout.N, layout.K)
    moved = ACTIVATION_BYTES * context.made(node) + found.macs // layout.N
    bits = maker.tender_format().width, layout.bits
    return replace(found, activation_bytes=moved, coded=True, code_bits=bits, shifts=int(shifts.max()))


def _product(node: Node, context: Context) -> Operation:
    layout = node.integer_layout()
    grouped = _shifted(node, layout, context)
    if grouped is not None:
        return grouped
    found = linear(node, context, layout.N, layout.K)
    # codes are read from memory as bytes
    moved = ACTIVATION_BYTES * context.made(node) + found.macs // layout.N
    return replace(found, activation_bytes=moved, coded=True)


def _attention(node: Node, context: Context) -> Operation:
    layout = node.attributes_as(AttentionLayout.of, context.shape(node.inputs[0])[-1])
    window = window_of(context, node.inputs[3])
    found = attention(
        node, context, layout.heads, layout.kv_heads, layout.head_dim, causal_pairs(context.phase, window), window
    )
    share = layout.row_bytes / layout.head_dim  # bytes of one cached number
    floats = found.cache_bytes_each
    quantized = context.phase.vectors * (layout.heads + 2 * layout.kv_heads) * layout.head_dim  # queries, keys, values
    return replace(
        found,
        vector_ops=found.vector_ops + QUANTIZE_OPS * quantized,
        quantized=quantized,
        weight_bytes=context.weight_bytes(node),
        cache_read_bytes=round(found.cache_read_bytes / floats * share),
        cache_write_bytes=round(found.cache_write_bytes / floats * share),
        cache_bytes_each=share,
    )


INTEGER_OPERATORS: Mapping[str, Callable[[Node, Context], Operation]] = {
    SDR_QUANTIZE: _quantize,
    BIT_PLANE_MATMUL: _planes,
    TENDER_QUANTIZE: _group,
    SDR_MATMUL: _product,
    SDR_ATTENTION: _attention,
}
