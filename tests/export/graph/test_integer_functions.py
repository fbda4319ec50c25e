"""The integer operators' function bodies in stock onnxruntime, bit for bit against the numpy references."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.contract.formats.base import DOMAIN, DOMAIN_VERSION, IR_VERSION, OPSET
from export.contract.operators.attention import AttentionLayout, append, sdr_attention
from export.contract.operators.integers import (
    SDR_ATTENTION,
    SDR_MATMUL,
    SDR_QUANTIZE,
    IntegerLayout,
    code_type,
    format_attributes,
    sdr_matmul,
    sdr_quantize,
    sdr_sums,
    weight_integers,
)
from export.contract.packing import pack
from export.contract.sdr import (
    HALF_EVEN,
    SIGN_MAGNITUDE,
    TWOS_COMPLEMENT,
    SdrFormat,
    code_table,
    pack_flags,
    restore,
)
from export.graph.bodies.integers import integer_function_bodies

FORMATS = [
    SdrFormat(16, 4, 16),
    SdrFormat(16, 4, 16, TWOS_COMPLEMENT),
    SdrFormat(16, 4, 8, SIGN_MAGNITUDE, HALF_EVEN),
    SdrFormat(16, 8, 128, TWOS_COMPLEMENT, HALF_EVEN),
    SdrFormat(16, 16, 32),
    SdrFormat(4, 4, 16),
]
_TYPES = {np.float32: 1, np.uint8: 2, np.int8: 3, np.int16: 5, np.int32: 6, np.int64: 7, np.bool_: 9}


def run(op_type: str, attributes: dict, inputs: list[np.ndarray], out_types: list[int], extra: str = "") -> list:
    """One node with its body in stock onnxruntime. extra: an inner value of the body to return beside the outputs."""
    names = [f"x{i}" for i in range(len(inputs))]
    outputs = [f"y{i}" for i in range(len(out_types) - bool(extra))] + ([extra] if extra else [])
    bodies = {f.name: onnx.FunctionProto.FromString(f.SerializeToString()) for f in integer_function_bodies()}
    if extra:
        bodies[op_type].output.append(extra)
    node = onnx.helper.make_node(op_type, names, outputs, domain=DOMAIN, name=op_type, **attributes)
    graph = onnx.helper.make_graph(
        [node], "one",
        [onnx.helper.make_tensor_value_info(n, _TYPES[a.dtype.type], [None] * a.ndim) for n, a in zip(names, inputs)],
        [onnx.helper.make_tensor_value_info(n, t, None) for n, t in zip(outputs, out_types)],
    )  # fmt: skip
    opsets = [onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid(DOMAIN, DOMAIN_VERSION)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, functions=list(bodies.values()))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip(names, inputs)))


def _values(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Activations with the outliers that make razoring interesting."""
    x = rng.standard_normal(shape) * np.exp(2 * rng.standard_normal(shape))
    return x.astype(np.float32)


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize("columns", [1, 16, 172, 256])
def test_quantize(form: SdrFormat, per_token: bool, columns: int) -> None:
    rng = np.random.default_rng(columns)
    x = _values(rng, 2, 3, columns)
    x[0, 1] = 0
    unit = np.array([np.abs(x).max() / form.limit / 1.5], np.float32)  # some values are clipped
    attributes = {**format_attributes(form), "per_token": int(per_token), "code_type": code_type(form)}
    found = run(SDR_QUANTIZE, attributes, [x, unit], [code_type(form), 2, 1])
    for have, want in zip(found, sdr_quantize(x, unit, form, per_token)):
        assert have.dtype == want.dtype
        np.testing.assert_array_equal(have, want)


def make_product(rng: np.random.Generator, rows: int, columns: int, group: int, razored: bool) -> tuple:
    """Layout, packed codes, codebook, flags and scale of random weights: razored ones, or a 3-bit codebook."""
    if razored:
        form = SdrFormat(8, 4, group)
        layout = IntegerLayout(4, columns, rows, group, rows_per_codebook=rows)
        codebook = code_table(form)[None, None]
        flags = pack_flags(rng.integers(0, form.flag_limit + 1, (rows, layout.groups)))
    else:
        layout = IntegerLayout(3, columns, rows, group, rows_per_codebook=2, rows_per_scale=1)
        codebook = rng.integers(-127, 128, (-(-rows // 2), 1, 8)).astype(np.int8)
        flags = pack_flags(np.zeros((1, layout.groups), np.uint8))
    codes = pack(rng.integers(0, 1 << layout.bits, (rows, columns)), layout.bits)
    scale = rng.uniform(0.001, 0.01, layout.stored().scale_shape).astype(np.float32)
    return layout, codes, codebook, flags, scale


@pytest.mark.parametrize("razored", [True, False])
@pytest.mark.parametrize("width", [4, 8, 16])
@pytest.mark.parametrize("columns, group", [(64, 16), (172, 16), (300, 128), (40, 8)])
def test_matmul(columns: int, group: int, width: int, razored: bool) -> None:
    rng = np.random.default_rng(columns + width)
    layout, weight_codes, codebook, weight_flags, scale = make_product(rng, 7, columns, group, razored)
    form = SdrFormat(16, width, group)
    x = _values(rng, 1, 5, columns)
    codes, flags, units = sdr_quantize(x, np.ones(1, np.float32), form, per_token=True)
    inputs = [codes, flags, units, weight_codes, codebook, weight_flags, scale]
    found, sums = run(SDR_MATMUL, layout.attributes(), inputs, [1, 7], extra="sums")
    weights = weight_integers(layout, weight_codes, codebook)
    np.testing.assert_array_equal(sums, sdr_sums(layout, codes, flags, weights, weight_flags)[0])
    want = sdr_matmul(codes, flags, units, layout, weight_codes, codebook, weight_flags, scale)
    np.testing.assert_array_equal(found, want)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 70), st.sampled_from([1, 4, 8, 16, 32]), st.integers(0, 2**32 - 1))
def test_codes_multiply_like_the_integers_they_stand_for(columns: int, group: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    layout, weight_codes, codebook, weight_flags, _ = make_product(rng, 3, columns, group, razored=True)
    codes, flags, _ = sdr_quantize(_values(rng, 2, columns), np.ones(1, np.float32), SdrFormat(16, 4, group), True)
    weights = weight_integers(layout, weight_codes, codebook)
    sums = sdr_sums(layout, codes, flags, weights, weight_flags)
    from export.contract.sdr import unpack_flags

    a = restore(codes.reshape(2, -1), flags, group)
    w = restore(weights.reshape(3, -1), unpack_flags(weight_flags, layout.groups), group)
    np.testing.assert_array_equal(sums, a @ w.T)


@pytest.mark.parametrize("width", [4, 8])
@pytest.mark.parametrize(
    "heads, kv_heads, head_dim, group, softcap",
    [(4, 2, 16, 16, 0.0), (8, 4, 8, 16, 0.0), (3, 3, 48, 32, 0.0), (2, 1, 64, 16, 20.0)],
)
def test_attention(heads: int, kv_heads: int, head_dim: int, group: int, softcap: float, width: int) -> None:
    rng = np.random.default_rng(heads + head_dim)
    form = SdrFormat(8, width, group)
    attributes = {
        **format_attributes(form),
        "q_num_heads": heads,
        "kv_num_heads": kv_heads,
        "scale": 0.21,
        "softcap": softcap,
    }
    layout = AttentionLayout.of(attributes, heads * head_dim)
    batch, past, tokens = 2, 5, 3
    units = [np.array([0.02], np.float32), rng.uniform(0.01, 0.03, kv_heads).astype(np.float32)]
    empty = np.zeros((batch, kv_heads, 0, layout.row_bytes), np.uint8)
    cached = [append(_values(rng, batch, past, kv_heads * head_dim), empty, unit, layout) for unit in units]
    q = _values(rng, batch, tokens, heads * head_dim)
    k, v = (_values(rng, batch, tokens, kv_heads * head_dim) for _ in range(2))
    mask = np.tril(np.ones((tokens, past + tokens), bool), past)[None, None].repeat(batch, 0)
    mask[1, :, :, :2] = False
    inputs = [q, k, v, mask, *cached, *units]
    found = run(SDR_ATTENTION, attributes, inputs, [1, 2, 2])
    want = sdr_attention(*inputs, layout)
    np.testing.assert_array_equal(found[1], want[1])
    np.testing.assert_array_equal(found[2], want[2])
    if softcap:  # tanh differs in its last bits
        np.testing.assert_allclose(found[0], want[0], rtol=2e-3, atol=1e-5)
    else:
        np.testing.assert_array_equal(found[0], want[0])


def test_attention_is_close_to_softmax_attention() -> None:
    """8-bit caches: the integers stand for what floating point would do. Tolerance: one step of 127 in K and V."""
    rng = np.random.default_rng(0)
    heads, kv_heads, dim, tokens = 4, 2, 32, 20
    attributes = {
        **format_attributes(SdrFormat(8, 8, 16)),
        "q_num_heads": heads,
        "kv_num_heads": kv_heads,
        "scale": dim**-0.5,
        "softcap": 0.0,
    }
    layout = AttentionLayout.of(attributes, heads * dim)
    q, k, v = (rng.standard_normal((1, tokens, n * dim)).astype(np.float32) for n in (heads, kv_heads, kv_heads))
    mask = np.tril(np.ones((tokens, tokens), bool))[None, None]
    empty = np.zeros((1, kv_heads, 0, layout.row_bytes), np.uint8)
    units = [np.array([np.abs(x).max() / 127], np.float32) for x in (k, v)]
    out, _, _ = sdr_attention(q, k, v, mask, empty, empty, *units, layout)
    split = [
        x.reshape(tokens, n, dim).transpose(1, 0, 2) for x, n in ((q[0], heads), (k[0], kv_heads), (v[0], kv_heads))
    ]
    keys, values = (np.repeat(x, heads // kv_heads, 0) for x in split[1:])
    scores = np.where(mask[0], split[0] @ keys.transpose(0, 2, 1) * dim**-0.5, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    want = (weights / weights.sum(-1, keepdims=True)) @ values
    np.testing.assert_allclose(out[0].reshape(tokens, heads, dim).transpose(1, 0, 2), want, atol=float(units[1][0]) * 2)
