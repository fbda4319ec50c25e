"""SparseAttention: the reference against dense attention over the pages it names, its body against the reference."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from export.contract.formats.base import DOMAIN, DOMAIN_VERSION, IR_VERSION, OPSET
from export.contract.operators.sparse_attention import (
    PAGE,
    SPARSE_ATTENTION,
    SparseLayout,
    page_means,
    seen_pages,
    sparse_attention,
    sparse_attention_function,
)

NAMES = ("Q", "K", "V", "mask", "past_key", "past_value")


def inputs_of(tokens: int, past: int, heads: int, kv_heads: int, size: int, batch: int) -> list[np.ndarray]:
    rng = np.random.default_rng(tokens + 10 * past + heads)
    shapes = [(batch, tokens, n * size) for n in (heads, kv_heads, kv_heads)]
    query, key, value = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    caches = [rng.standard_normal((batch, kv_heads, past, size)).astype(np.float32) for _ in range(2)]
    mask = np.arange(past + tokens) <= np.arange(past, past + tokens)[:, None]
    return [3 * query, key, value, np.broadcast_to(mask, (batch, 1, *mask.shape)).copy(), *caches]


def model(inputs: list[np.ndarray], attributes: dict[str, float]) -> object:
    node = helper.make_node(SPARSE_ATTENTION, NAMES, ["Y", "k", "v"], domain=DOMAIN, **attributes)
    given = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in zip(NAMES, inputs)
    ]
    made = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("Y", "k", "v")]
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)]
    graph = helper.make_graph([node], "g", given, made)
    return helper.make_model(
        graph, opset_imports=opsets, functions=[sparse_attention_function()], ir_version=IR_VERSION
    )


def attributes_of(heads: int, kv_heads: int, **more: float) -> dict[str, float]:
    chosen = {"scale": 0.4, "softcap": 0.0, "pages": 4, "first": 1, "recent": 2}
    return {"q_num_heads": heads, "kv_num_heads": kv_heads, **chosen, **more}


@pytest.mark.parametrize("tokens, past", [(1, 0), (5, 0), (1, 15), (1, 150), (70, 83), (150, 0)])
@pytest.mark.parametrize("heads, kv_heads, size, batch", [(4, 2, 8, 2), (3, 1, 5, 1)])
@pytest.mark.parametrize("more", [{}, {"softcap": 2.0, "first": 0, "recent": 1}])
def test_everywhere_alike(tokens, past, heads, kv_heads, size, batch, more):
    inputs = inputs_of(tokens, past, heads, kv_heads, size, batch)
    attributes = attributes_of(heads, kv_heads, **more)
    layout = SparseLayout.of(attributes, heads * size)
    found = sparse_attention(*inputs, layout)
    query, keys, values = inputs[0].reshape(batch, tokens, heads, size), found[1], found[2]
    for b, t, h in np.ndindex(batch, tokens, heads):
        kv = h // (heads // kv_heads)
        own = inputs[0].reshape(batch, tokens, kv_heads, heads // kv_heads, size).transpose(0, 2, 3, 1, 4)
        pages = np.flatnonzero(seen_pages(own[b], page_means(keys[b]), past, layout)[kv, t])
        positions = (pages[:, None] * PAGE + np.arange(PAGE)).reshape(-1)
        seen = positions[positions <= past + t]
        assert len(pages) == min(layout.pages, (past + t) // PAGE + 1)  # never fewer than there could be
        assert past + t in seen and (layout.first == 0 or 0 in seen)
        scores = (keys[b, kv, seen] @ query[b, t, h] * 0.4).astype(np.float64)
        if layout.softcap:
            scores = layout.softcap * np.tanh(scores / layout.softcap)
        shares = np.exp(scores - scores.max())
        expected = shares / shares.sum() @ values[b, kv, seen]
        np.testing.assert_allclose(found[0].reshape(batch, tokens, heads, size)[b, t, h], expected, atol=1e-5)
    proto, feeds = model(inputs, attributes), dict(zip(NAMES, inputs))
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for outputs in (session.run(None, feeds), ReferenceEvaluator(proto).run(None, feeds)):
        for one, other in zip(outputs, found, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_page_that_holds_the_answer_is_read():
    """Random keys, one page of which leans towards the query: it is among the four of a hundred."""
    rng = np.random.default_rng(0)
    keys = rng.standard_normal((1, 1600, 16)).astype(np.float32)
    query = rng.standard_normal((1, 1, 1, 16)).astype(np.float32)
    keys[0, 800:816] += query[0, 0, 0]
    layout = SparseLayout.of(attributes_of(1, 1), 16)
    assert seen_pages(query, page_means(keys), 1599, layout)[0, 0, 801 // PAGE]


@pytest.mark.parametrize("hides", [True, False])
def test_what_comes_later_changes_nothing_whatever_the_mask_says(hides):
    inputs = inputs_of(100, 0, 2, 1, 8, 1)
    inputs[3] |= not hides
    layout = SparseLayout.of(attributes_of(2, 1), 16)
    whole = sparse_attention(*inputs, layout)[0]
    half = [a[:, :50] for a in inputs[:3]]
    part = sparse_attention(*half, inputs[3][:, :, :50, :50], *inputs[4:], layout)[0]
    np.testing.assert_allclose(whole[:, :50], part, atol=1e-6)
    session = ort.InferenceSession(model(inputs, attributes_of(2, 1)).SerializeToString())
    np.testing.assert_allclose(session.run(["Y"], dict(zip(NAMES, inputs)))[0], whole, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"q_num_heads": 3}, {"kv_num_heads": 0}, {"q_num_heads": 2.0}, {"scale": "x"}, {"q_num_heads": 64},
        {"pages": 2}, {"recent": 0}, {"first": -1}, {"pages": 1 << 17}, {"scale": float("nan")}, {"softcap": -1.0},
        {"pages": True},
    ],
)  # fmt: skip
def test_attributes_that_do_not_fit(change):
    with pytest.raises((TypeError, ValueError)):
        SparseLayout.of({**attributes_of(4, 2), **change}, 32)
