"""SinkAttention: the reference against a plain softmax, its body in onnxruntime and onnx.reference against it."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from export.contract.formats.base import DOMAIN, DOMAIN_VERSION, IR_VERSION, OPSET
from export.contract.operators.sink_attention import (
    SINK_ATTENTION,
    SinkLayout,
    sink_attention,
    sink_attention_function,
)

NAMES = ("Q", "K", "V", "mask", "past_key", "past_value", "sink")


def inputs_of(tokens: int, past: int, heads: int, kv_heads: int, size: int, batch: int) -> list[np.ndarray]:
    rng = np.random.default_rng(tokens + 10 * past + heads)
    shapes = [(batch, tokens, n * size) for n in (heads, kv_heads, kv_heads)]
    query, key, value = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    caches = [rng.standard_normal((batch, kv_heads, past, size)).astype(np.float32) for _ in range(2)]
    mask = np.arange(past + tokens) <= np.arange(past, past + tokens)[:, None]
    mask = np.broadcast_to(mask, (batch, 1, *mask.shape)).copy()
    mask[0, 0, 0] = False  # a query that sees nothing
    return [query, key, value, mask, *caches, (3 * rng.standard_normal(heads)).astype(np.float32)]


def model(inputs: list[np.ndarray], attributes: dict[str, float]) -> object:
    node = helper.make_node(SINK_ATTENTION, NAMES, ["Y", "k", "v"], domain=DOMAIN, **attributes)
    given = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in zip(NAMES, inputs)
    ]
    made = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("Y", "k", "v")]
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)]
    graph = helper.make_graph([node], "g", given, made)
    functions = [sink_attention_function()]
    return helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=IR_VERSION)


@pytest.mark.parametrize("tokens, past", [(1, 0), (5, 0), (1, 7), (4, 3)])
@pytest.mark.parametrize("heads, kv_heads, size, batch", [(4, 2, 8, 2), (3, 1, 5, 1), (2, 2, 4, 1)])
def test_everywhere_alike(tokens, past, heads, kv_heads, size, batch):
    inputs = inputs_of(tokens, past, heads, kv_heads, size, batch)
    attributes = {"q_num_heads": heads, "kv_num_heads": kv_heads, "scale": 0.4}
    found = sink_attention(*inputs, SinkLayout.of(attributes, heads * size))
    query, keys, values = inputs[0].reshape(batch, tokens, heads, size), found[1], found[2]
    for b, t, h in np.ndindex(batch, tokens, heads):
        seen, kv = inputs[3][b, 0, t], h // (heads // kv_heads)
        scores = np.append(keys[b, kv, seen] @ query[b, t, h] * 0.4, inputs[6][h]).astype(np.float64)
        shares = np.exp(scores - scores.max())
        expected = (shares / shares.sum())[:-1] @ values[b, kv, seen]
        np.testing.assert_allclose(found[0].reshape(batch, tokens, heads, size)[b, t, h], expected, atol=1e-5)
    proto, feeds = model(inputs, attributes), dict(zip(NAMES, inputs))
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for outputs in (session.run(None, feeds), ReferenceEvaluator(proto).run(None, feeds)):
        for one, other in zip(outputs, found, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize(
    "change", [{"q_num_heads": 3}, {"kv_num_heads": 0}, {"q_num_heads": 2.0}, {"scale": "x"}, {"q_num_heads": 64}]
)
def test_attributes_that_do_not_fit(change):
    with pytest.raises((TypeError, ValueError)):
        SinkLayout.of({"q_num_heads": 4, "kv_num_heads": 2, "scale": 1.0, **change}, 32)
