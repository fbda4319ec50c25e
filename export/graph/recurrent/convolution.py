"""A block's gated short convolution (LFM2): what stands in place of attention, and its state.

The state is the input of the convolution at the last `width` positions, float32 [batch, hidden_size, width], as
onnxruntime-genai keeps it (one column more than the next token needs); at the start it is zeros. Only operators of
opset 23: CausalConvWithState does the same, but onnx's checker and onnxruntime refuse it before opset 27.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from export.contract.errors import InputError
from export.graph.layers import BATCH, SEQUENCE, Layers
from export.graph.parts import ShortConvolution
from export.graph.spec import ModelSpec
from export.graph.writer import Dim, GraphWriter

_END = np.iinfo(np.int64).max


def token_mask(g: GraphWriter, input_ids: ir.Value, attention_mask: ir.Value) -> ir.Value:
    """1 for the tokens of this call, 0 for padding among them: float32 [batch, sequence, 1]."""
    at, long = "/model/token_mask", ir.DataType.INT64
    second, last = (g.constant(f"axis.{n}", np.asarray([i], np.int64)) for n, i in (("second", 1), ("last", -1)))
    total = g.op("Shape", f"{at}/total", [attention_mask], [1], long, start=1, end=2)
    sequence = g.op("Shape", f"{at}/sequence", [input_ids], [1], long, start=1, end=2)
    past = g.op("Sub", f"{at}/past", [total, sequence], [1], long)
    own = g.op("Slice", f"{at}/own", [attention_mask, past, total, second], [BATCH, SEQUENCE], long)
    floats = g.op("Cast", f"{at}/float", [own], [BATCH, SEQUENCE], to=ir.DataType.FLOAT)
    return g.op("Unsqueeze", at, [floats, last], [BATCH, SEQUENCE, 1])


def short_states(g: GraphWriter, spec: ModelSpec, names: ShortConvolution, layer: int) -> tuple[ir.Value, ...]:
    """Inputs of the graph: the state of a layer."""
    return (g.input(f"past_conv.{layer}", ir.DataType.FLOAT, [BATCH, spec.hidden_size, names.width]),)


def short_convolution(
    layers: Layers, spec: ModelSpec, layer: int, value: ir.Value, mask: ir.Value, state: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """What goes into the block's `attention_output`, float32 [batch, sequence, hidden_size], and the new state.

    value: the block's normed input; mask: of token_mask(). Padding is set to zero before the first product, as
    transformers does it.
    """
    g, hidden, names = layers.g, spec.hidden_size, spec.names_of_layer(layer).convolution
    assert names is not None
    at = f"/model/layers.{layer}/convolution"
    rows: list[Dim] = [BATCH, SEQUENCE, hidden]
    masked = g.op("Mul", f"{at}/masked", [value, mask], rows)
    module = spec.prefix(layer) + names.input
    mixed = layers.matmul(module, masked, f"/model/layers.{layer}/{names.input.replace('.', '/')}", hidden, 3 * hidden)
    sizes = g.constant("convolution.widths", np.asarray([hidden] * 3, np.int64))
    inner, outer, values = g.op("Split", f"{at}/split", [mixed, sizes], [rows] * 3, axis=-1)
    gated = g.op("Mul", f"{at}/gated_input", [inner, values], rows)
    columns = g.op("Transpose", f"{at}/columns", [gated], [BATCH, hidden, SEQUENCE], perm=[0, 2, 1])
    seen = g.op("Concat", f"{at}/seen", [state, columns], [BATCH, hidden, longer(names.width)], axis=2)
    numbers = (("slice.end", _END), ("axis.third", 2), ("slice.second", 1))
    end, axis, second = (g.constant(name, np.asarray([number], np.int64)) for name, number in numbers)
    first_kept = g.constant(f"slice.last_{names.width}", np.asarray([-names.width], np.int64))
    kept = g.op("Slice", f"{at}/state", [seen, first_kept, end, axis], [BATCH, hidden, names.width])
    near = g.op("Slice", f"{at}/near", [seen, second, end, axis], [BATCH, hidden, longer(names.width - 1)])
    convolved = g.op(
        "Conv", at, [near, *_kernel(layers, spec, layer, names)], [BATCH, hidden, SEQUENCE], group=hidden,
        kernel_shape=[names.width],
    )  # fmt: skip
    back = g.op("Transpose", f"{at}/rows", [convolved], rows, perm=[0, 2, 1])
    return g.op("Mul", f"{at}/gated_output", [outer, back], rows), kept


def longer(more: int) -> str:
    """The dimension of so many columns and those of this call."""
    return f"{SEQUENCE} + {more}" if more else SEQUENCE


def _kernel(layers: Layers, spec: ModelSpec, layer: int, names: ShortConvolution) -> list[ir.Value]:
    """Weights, and the bias where there is one. Raises InputError on other shapes."""
    module, checkpoint = spec.prefix(layer) + names.kernel, layers.checkpoint
    found = [layers.vector(f"{module}.weight")]
    found += [layers.vector(f"{module}.bias")] if checkpoint.has(f"{module}.bias") else []
    for value, shape in zip(found, ((spec.hidden_size, 1, names.width), (spec.hidden_size,))):
        if tuple(value.shape or ()) != shape:
            raise InputError(f"{checkpoint.folder}: {value.name} is {value.shape}, expected {list(shape)}")
    return found
