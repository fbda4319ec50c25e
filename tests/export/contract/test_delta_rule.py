"""GatedDeltaRule and CausalConvolution: references against transformers, bodies in onnxruntime and onnx.reference."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from transformers.models.qwen3_5 import modeling_qwen3_5 as theirs

from export.contract.formats.base import DOMAIN, DOMAIN_VERSION, IR_VERSION, OPSET
from export.contract.operators.causal_convolution import (
    CAUSAL_CONVOLUTION,
    causal_convolution,
    causal_convolution_function,
)
from export.contract.operators.delta_rule import (
    GATED_DELTA_RULE,
    DeltaRuleLayout,
    delta_rule_function,
    gated_delta_rule,
)

NAMES = ("Q", "K", "V", "decay", "beta", "rate", "bias", "past")


def inputs_of(batch: int, tokens: int, key_heads: int, heads: int, dk: int, dv: int) -> list[np.ndarray]:
    rng = np.random.default_rng(tokens + 10 * heads)
    widths = (key_heads * dk, key_heads * dk, heads * dv, heads, heads)
    rows = [rng.standard_normal((batch, tokens, width)).astype(np.float32) for width in widths]
    rows[3] *= 4
    rate, bias = -np.exp(rng.standard_normal(heads)), rng.standard_normal(heads)
    past = rng.standard_normal((batch, heads, dk, dv))
    return [*rows, *(array.astype(np.float32) for array in (rate, bias, past))]


def run_everywhere(operator, function, names, inputs, outputs, attributes):
    """Outputs of the function body: onnxruntime's, then onnx.reference's."""
    node = helper.make_node(operator, names, outputs, domain=DOMAIN, **attributes)
    given = [helper.make_tensor_value_info(n, TensorProto.FLOAT, a.shape) for n, a in zip(names, inputs)]
    made = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs]
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)]
    graph = helper.make_graph([node], "g", given, made)
    proto = helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=IR_VERSION)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = dict(zip(names, inputs))
    return session.run(None, feeds), ReferenceEvaluator(proto).run(None, feeds)


@pytest.mark.parametrize("tokens", [1, 2, 7, 70])
@pytest.mark.parametrize("batch, key_heads, heads, dk, dv", [(1, 2, 2, 8, 8), (2, 1, 3, 4, 6), (2, 2, 4, 16, 1)])
def test_the_delta_rule_is_transformers(batch, key_heads, heads, dk, dv, tokens):
    inputs = inputs_of(batch, tokens, key_heads, heads, dk, dv)
    attributes = {"key_heads": key_heads, "value_heads": heads, "epsilon": 1e-6}
    layout = DeltaRuleLayout.of(attributes, key_heads * dk, heads * dv)
    found = gated_delta_rule(*inputs, layout)
    q, k, v, a, b, rate, bias, past = map(torch.from_numpy, inputs)
    split = [x.reshape(batch, tokens, -1, size) for x, size in ((q, dk), (k, dk), (v, dv))]
    for rule in (theirs.torch_chunk_gated_delta_rule, theirs.torch_recurrent_gated_delta_rule):
        out, state = rule(
            *split, g=rate * torch.nn.functional.softplus(a + bias), beta=b.sigmoid(), initial_state=past,
            output_final_state=True, use_qk_l2norm_in_kernel=True,
        )  # fmt: skip
        np.testing.assert_allclose(found[0], out.reshape(batch, tokens, -1).numpy(), atol=2e-5)
        np.testing.assert_allclose(found[1], state.numpy(), atol=2e-5)
    body = delta_rule_function()
    for outputs in run_everywhere(GATED_DELTA_RULE, body, NAMES, inputs, ["Y", "present"], attributes):
        for one, other in zip(outputs, found, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("tokens", [1, 2, 9])
@pytest.mark.parametrize("batch, channels, width", [(1, 3, 2), (2, 5, 4), (1, 1, 7)])
def test_the_convolution_is_torchs(batch, channels, width, tokens):
    rng = np.random.default_rng(tokens)
    x, weight, past = (
        rng.standard_normal(shape).astype(np.float32)
        for shape in ((batch, tokens, channels), (channels, 1, width), (batch, channels, width - 1))
    )
    found = causal_convolution(x, weight, past)
    seen = torch.from_numpy(np.concatenate([past, x.transpose(0, 2, 1)], axis=2))
    expected = torch.nn.functional.conv1d(seen, torch.from_numpy(weight), groups=channels)
    np.testing.assert_allclose(found[0], expected.numpy().transpose(0, 2, 1), atol=1e-5)
    np.testing.assert_array_equal(found[1], seen[:, :, tokens:].numpy())
    names, body = ("X", "weight", "past"), causal_convolution_function()
    made = run_everywhere(CAUSAL_CONVOLUTION, body, names, (x, weight, past), ["Y", "present"], {"channels": channels})
    for outputs in made:
        for one, other in zip(outputs, found, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize(
    "change", [{"key_heads": 3}, {"key_heads": 0}, {"value_heads": 4.0}, {"value_heads": 64}, {"epsilon": float("nan")},
               {"epsilon": "x"}, {"epsilon": -1.0}, {"key_heads": 4, "value_heads": 2}]
)  # fmt: skip
def test_attributes_that_do_not_fit(change):
    with pytest.raises((TypeError, ValueError)):
        DeltaRuleLayout.of({"key_heads": 2, "value_heads": 4, "epsilon": 1e-6, **change}, 16, 32)


def test_shapes_that_do_not_fit():
    inputs = inputs_of(1, 2, 1, 2, 4, 4)
    layout = DeltaRuleLayout.of({"key_heads": 1, "value_heads": 2, "epsilon": 1e-6}, 4, 8)
    with pytest.raises(ValueError):
        gated_delta_rule(*inputs[:-1], inputs[-1][:, :1], layout)
    x, weight = np.ones((1, 2, 3), np.float32), np.ones((3, 1, 4), np.float32)
    for kernel, past in (
        (weight, (1, 3, 4)),
        (weight, (1, 2, 3)),
        (weight[:2], (1, 3, 3)),
        (weight[..., :1], (1, 3, 0)),
    ):
        with pytest.raises(ValueError):
            causal_convolution(x, kernel, np.zeros(past, np.float32))
