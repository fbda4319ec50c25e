"""Codes with group scales: the bits of the function body and of the file's own formula, and what is refused."""

from __future__ import annotations

from fractions import Fraction

import gguf
import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from export.contract.formats.base import DOMAIN, DOMAIN_VERSION, IR_VERSION, OPSET
from export.contract.formats.groups import GROUP_GATHER, MINIMA, ONE_ZERO, ZEROS, GroupsLayout, group_gather
from export.contract.packing import pack
from tests.export.contract.test_formats import in_onnxruntime


def parts_of(layout: GroupsLayout, rng: np.random.Generator, dtype: type = np.float32) -> list[np.ndarray]:
    """Random parts, scales of either sign, zero points of the whole range."""
    codes = pack(rng.integers(0, 1 << layout.bits, (layout.N, layout.K), dtype=np.uint8), layout.bits)
    scale = rng.standard_normal(layout.scale_shape).astype(dtype)
    if layout.offsets == MINIMA:
        return [codes, scale, rng.standard_normal(layout.offset_shape).astype(dtype)]
    offset = rng.integers(0, min((1 << layout.bits) + 1, 256), layout.offset_shape).astype(np.uint8)
    if layout.offsets == ONE_ZERO and layout.bits == 8:
        offset[:] = 128
    return [codes, scale, offset]


LAYOUTS = st.builds(
    GroupsLayout,
    bits=st.integers(1, 8),
    K=st.integers(1, 700),
    N=st.integers(1, 20),
    group_size=st.one_of(st.sampled_from([16, 32, 64, 128, 256]), st.integers(1, 800)),
    offsets=st.sampled_from([ONE_ZERO, ZEROS, MINIMA]),
)


def same_bits(a: np.ndarray, b: np.ndarray) -> None:
    np.testing.assert_array_equal(np.ascontiguousarray(a).view(np.uint32), np.ascontiguousarray(b).view(np.uint32))


@settings(max_examples=40, deadline=None)
@given(LAYOUTS, st.integers(0, 2**31))
def test_rows_are_the_formula_rounded_once_a_step(layout, seed):
    rng = np.random.default_rng(seed)
    codes, scale, offset = parts_of(layout, rng)
    from export.contract.packing import unpack

    weights, code = layout.dequantized(codes, scale, offset), unpack(codes, layout.bits, layout.K)
    for n, k in zip(rng.integers(0, layout.N, 10), rng.integers(0, layout.K, 10)):
        g = k // layout.group_size
        own = offset[0, 0] if layout.offsets == ONE_ZERO else offset[n, g]
        factor = Fraction(float(scale[n, g]))
        if layout.offsets == MINIMA:
            product = np.float32(float(factor * int(code[n, k])))
            expected = np.float32(float(Fraction(float(product)) + Fraction(float(own))))
        else:
            expected = np.float32(float(factor * (int(code[n, k]) - int(own))))
        assert weights[n, k] == expected


def gathered_in_onnxruntime(layout, arrays, ids):
    names = list(layout.parts())
    node = helper.make_node(GROUP_GATHER, ["ids", *names], ["Y"], domain=DOMAIN, **layout.attributes())
    graph = helper.make_graph(
        [node],
        "lookup",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, list(ids.shape))],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [*ids.shape, layout.K])],
        [numpy_helper.from_array(array, name) for name, array in zip(names, arrays)],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)]
    model = helper.make_model(graph, functions=layout.function_bodies(), opset_imports=opsets, ir_version=IR_VERSION)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"ids": ids})[0]


@settings(max_examples=30, deadline=None)
@given(LAYOUTS, st.sampled_from([np.float16, np.float32]), st.integers(0, 2**31))
def test_function_bodies_give_the_same_bits(layout, dtype, seed):
    """Zeros of either sign included: the product of the identity adds zeros, which the lookup does not."""
    rng = np.random.default_rng(seed)
    arrays = parts_of(layout, rng, dtype)
    np.testing.assert_array_equal(in_onnxruntime(layout, arrays), layout.dequantized(*arrays))
    ids = rng.integers(0, layout.N, (2, 3))
    same_bits(gathered_in_onnxruntime(layout, arrays, ids), group_gather(ids, layout, *arrays))


@pytest.mark.parametrize("kind, bits, offsets", [
    ("Q4_0", 4, ONE_ZERO), ("Q4_1", 4, MINIMA), ("Q5_0", 5, ONE_ZERO), ("Q5_1", 5, MINIMA), ("Q8_0", 8, ONE_ZERO),
])  # fmt: skip
def test_it_holds_what_gguf_stores_to_the_bit(kind, bits, offsets):
    """The codes and halves of the file's blocks, against the reader of the package gguf."""
    rng = np.random.default_rng(bits)
    rows, columns = 6, 96
    kind = gguf.GGMLQuantizationType[kind]
    size, block = gguf.GGML_QUANT_SIZES[kind]
    raw = rng.integers(0, 256, (rows, columns // size, block), dtype=np.uint8)
    halves = rng.standard_normal((rows, columns // size, 2)).astype(np.float16)
    scales = 2 if offsets == MINIMA else 1
    raw[..., : 2 * scales] = np.ascontiguousarray(halves[..., :scales]).view(np.uint8)
    rest = raw[..., 2 * scales :]
    if bits == 8:
        code = rest ^ 128
    else:
        quads = rest[..., -16:]
        code = np.concatenate([quads & 15, quads >> 4], axis=-1)
        if bits == 5:
            high = np.unpackbits(np.ascontiguousarray(rest[..., :4]), axis=-1, bitorder="little")
            code = code | high << 4
    layout = GroupsLayout(bits, columns, rows, 32, offsets)
    offset = halves[..., 1] if offsets == MINIMA else np.full((1, 1), 1 << (bits - 1), np.uint8)
    arrays = [pack(code.reshape(rows, columns), bits), halves[..., 0], offset]
    expected = gguf.quants.dequantize(raw.reshape(rows, -1), kind)
    same_bits(layout.dequantized(*arrays), expected.astype(np.float32))


@pytest.mark.parametrize("name, value", [
    ("group_size", 0), ("group_size", -32), ("group_size", 2**31), ("offsets", 3), ("offsets", -1), ("bits", 0),
    ("bits", 9), ("K", 0), ("N", 0), ("N", 2**31),
])  # fmt: skip
def test_attributes_out_of_range_are_refused(name, value):
    good = {"bits": 4, "K": 64, "N": 8, "group_size": 32, "offsets": 0}
    with pytest.raises(ValueError, match=f"{name} must be"):
        GroupsLayout(**{**good, name: value})


def test_more_scales_than_can_be_counted_are_refused():
    with pytest.raises(ValueError, match="scales; less than"):
        GroupsLayout(4, 2**20, 2**20, 1, 0)


def test_zero_points_that_nothing_stores_are_refused():
    rng = np.random.default_rng(0)
    for bits, offsets, wrong in ((4, ONE_ZERO, 17), (4, ZEROS, 17), (2, ZEROS, 5), (8, ONE_ZERO, 127)):
        layout = GroupsLayout(bits, 64, 4, 32, offsets)
        codes, scale, offset = parts_of(layout, rng)
        offset[-1, -1] = wrong
        with pytest.raises(ValueError, match="offset holds"):
            layout.check(codes, scale, offset)


def test_zero_points_of_the_wrong_kind_are_refused():
    rng = np.random.default_rng(0)
    for offsets in (ONE_ZERO, ZEROS, MINIMA):
        layout = GroupsLayout(4, 64, 4, 32, offsets)
        codes, scale, _ = parts_of(layout, rng)
        for other in {ONE_ZERO, ZEROS, MINIMA} - {offsets}:
            with pytest.raises(ValueError, match="offset is"):
                layout.check(codes, scale, parts_of(GroupsLayout(4, 64, 4, 32, other), rng)[2])


def test_the_bits_that_a_codebook_cannot_hold_are_refused():
    with pytest.raises(ValueError, match="8 bits with zero points of their own"):
        GroupsLayout(8, 64, 4, 32, ZEROS).codebook_layout()
