"""Integer products with group-scaled codes: the bits of the plain reference, on every instruction set and any share."""

from __future__ import annotations

import itertools

import numba as nb
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from export.contract.formats.groups import MINIMA, ONE_ZERO, ZEROS, GroupsLayout
from runtime_py.engine.kernels.apart.groups import SCRATCH_BYTES, group_rows_apart
from runtime_py.engine.kernels.apart.places import place
from runtime_py.engine.kernels.groups import GROUP_ROWS, group_item, group_row, group_rows
from runtime_py.engine.kernels.quantize import group_sums, quantize_group, quantize_token, token_shares
from runtime_py.engine.layout import products as sizes
from runtime_py.engine.layout.products import HIGH_GROUP, HIGH_TOKEN, MOST_TOKENS, padded, width_tag
from runtime_py.engine.records.errors import Unplannable
from runtime_py.engine.records.group_matrix import GroupMatrix, group_record, kernel_group
from runtime_py.machine.isa import ISAS, WEIGHT_OFFSET, available
from runtime_py.system.guard_pages import aligned_bytes
from tests.export.contract.test_groups import parts_of
from tests.runtime_py.engine.activation_reference import with_outliers
from tests.runtime_py.engine.group_reference import fused, one_token, several_tokens

HERE = available()
BEST = (HERE[0],)
LONG = [*BEST, *(pytest.param(isa, marks=pytest.mark.long) for isa in HERE[1:])]


@nb.njit
def all_items(isa, width, items, matrix, quantized, scales, high, sums, tokens, out, bias, accumulate, scratch):
    for item in range(items):
        group_item(isa, width, matrix, item, quantized, scales, high, sums, tokens, out, bias, accumulate, 1, scratch)


def product(isa, layout, arrays, x, bias=None, start=None, runs=()):
    """The kernels' result: rows in the given runs for one token, tiles for several."""
    row, keep = group_record(layout, *arrays)
    matrix = GroupMatrix.of(row.tolist())
    width, size = width_tag(matrix.width), matrix.group_columns
    tokens, columns = x.shape
    blocks, wide, groups = -(-columns // 256), padded(columns), -(-columns // size)
    pairs = -(-tokens // 32) * 2
    parts = (16 * wide, blocks * 64, blocks * 64, blocks * HIGH_GROUP)
    q, sums, scales, high = (aligned_bytes(pairs * n) for n in parts)
    starts, shares = aligned_bytes(max(pairs * 64 * groups, wide)), aligned_bytes(64 * -(-groups // 16))
    scratch = aligned_bytes(sizes.scratch_bytes(columns) + 8192)
    out = np.zeros((tokens, layout.N), np.float32) if start is None else start.copy()
    tag, offset, x = ISAS[isa], WEIGHT_OFFSET[isa], np.ascontiguousarray(x)
    named = (("q", q), ("sums", sums), ("scales", scales), ("high", high), ("scratch", scratch))
    at = {name: a.ctypes.data for name, a in named}
    shift, more = 0 if bias is None else bias.ctypes.data, start is not None
    if tokens == 1:
        quantize_token(tag, offset, x.ctypes.data, columns, 0, blocks, at["q"], at["sums"], at["scales"], at["high"])
        more_sums = starts.ctypes.data, shares.ctypes.data
        token_shares(tag, offset, columns, 0, blocks, size, at["q"], at["scales"], at["high"], *more_sums)
        for first, last in runs or [(0, layout.N)]:
            group_rows(
                tag, width, row.ctypes.data, at["q"], at["scales"], at["high"], *more_sums, first, last,
                out.ctypes.data, shift, more, at["scratch"],
            )  # fmt: skip
        return out
    for group in range(-(-tokens // 16)):
        quantize_group(
            tag, offset, x.ctypes.data, columns, columns, group, tokens, 0, blocks, at["q"], at["sums"], at["scales"],
            at["high"], at["scratch"],
        )  # fmt: skip
        group_sums(tag, columns, group, 0, blocks, size, at["q"], at["high"], starts.ctypes.data)
    all_items(
        tag, width, -(-layout.N // GROUP_ROWS), row.ctypes.data, at["q"], at["scales"], at["high"],
        starts.ctypes.data, tokens, out.ctypes.data, shift, more, at["scratch"],
    )  # fmt: skip
    del keep
    return out


def apart(isa, layout, arrays, x, bias, start, runs):
    """The kernel's result for single tokens of several texts."""
    row, keep = group_record(layout, *arrays)
    matrix = GroupMatrix.of(row.tolist())
    width, size = width_tag(matrix.width), matrix.group_columns
    tokens, columns = x.shape
    blocks, groups = -(-columns // 256), -(-columns // size)
    parts = {"q": 256, "sums": 64, "scales": 4, "high": HIGH_TOKEN, "starts": 256}
    held = {name: aligned_bytes(tokens * blocks * n) for name, n in parts.items()}
    share = 64 * -(-groups // 16)
    shares, out = aligned_bytes(tokens * share), start.copy()
    scratch = aligned_bytes(SCRATCH_BYTES + padded(columns))
    tag, offset = ISAS[isa], WEIGHT_OFFSET[isa]
    for t, values in enumerate(np.ascontiguousarray(x)):
        for b in range(blocks):
            at = {name: held[name].ctypes.data + n * (place(t, b, tokens) - b) for name, n in parts.items()}
            quantized = at["q"], at["scales"], at["high"]
            quantize_token(
                tag, offset, values.ctypes.data, columns, b, b + 1, at["q"], at["sums"], at["scales"], at["high"]
            )  # fmt: skip
            own = shares.ctypes.data + share * t
            token_shares(tag, offset, columns, b, b + 1, size, *quantized, at["starts"], own)
    for first, last in runs:
        group_rows_apart(
            tag, width, row.ctypes.data, *(held[name].ctypes.data for name in ("q", "scales", "high", "starts")),
            shares.ctypes.data, tokens, first, last, out.ctypes.data, bias.ctypes.data, True, scratch.ctypes.data,
        )  # fmt: skip
    del keep
    return out


def expected(layout, arrays, x):
    size = kernel_group(layout)
    return (one_token if len(x) == 1 else several_tokens)(x, layout, arrays, size)


def activations(rng, tokens, columns):
    """Numbers of different size from token to token, most with a few outliers."""
    x = (rng.standard_normal((tokens, columns)) * np.exp(rng.standard_normal((tokens, 1)))).astype(np.float32)
    return with_outliers(x, rng)


def layouts(bits, group_size):
    """Every kind of tail, and rows around a tile."""
    return st.builds(
        GroupsLayout,
        bits=st.just(bits),
        K=st.one_of(st.integers(1, 700), st.sampled_from([64, 256, 320, 512, 576, 896])),
        N=st.integers(1, 40),
        group_size=st.just(group_size),
        offsets=st.sampled_from([ONE_ZERO, ZEROS, MINIMA]),
    )


CASES = [(4, 32, np.float16), (8, 32, np.float16), (3, 128, np.float32)]  # of them every kernel is compiled anew
RARE = [
    (2, 64, np.float16), (5, 32, np.float16), (4, 64, np.float16), (4, 128, np.float16), (8, 128, np.float32),
    (4, 256, np.float16), (2, 16, np.float16), (1, 32, np.float16), (6, 64, np.float32), (7, 32, np.float16),
]  # fmt: skip


@pytest.mark.parametrize("isa", LONG)
@pytest.mark.parametrize(
    "bits, group_size, dtype", [*CASES, *(pytest.param(*case, marks=pytest.mark.long) for case in RARE)]
)
@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from([1, 1, 2, 16, 17, 33]), st.integers(0, 2**31))
def test_products_are_the_reference_to_the_bit(isa, bits, group_size, dtype, data, tokens, seed):
    rng, layout = np.random.default_rng(seed), data.draw(layouts(bits, group_size))
    arrays, x = parts_of(layout, rng, dtype), activations(rng, tokens, layout.K)
    bias, start = (rng.standard_normal(shape).astype(np.float32) for shape in (layout.N, (tokens, layout.N)))
    plain = expected(layout, arrays, x)
    np.testing.assert_array_equal(product(isa, layout, arrays, x), plain)
    np.testing.assert_array_equal(product(isa, layout, arrays, x, bias, start), (plain + bias) + start)


@pytest.mark.parametrize("isa", LONG)
@pytest.mark.parametrize("bits, group_size, dtype", CASES)
@settings(max_examples=25, deadline=None)
@given(st.data(), st.integers(1, MOST_TOKENS), st.integers(0, 2**31))
def test_tokens_of_several_texts_have_the_bits_of_one(isa, bits, group_size, dtype, data, tokens, seed):
    rng, layout = np.random.default_rng(seed), data.draw(layouts(bits, group_size))
    arrays, x = parts_of(layout, rng, dtype), activations(rng, tokens, layout.K)
    bias, start = (rng.standard_normal(shape).astype(np.float32) for shape in (layout.N, (tokens, layout.N)))
    cut = data.draw(st.integers(0, layout.N))
    alone = [product(isa, layout, arrays, x[t : t + 1], bias, start[t : t + 1])[0] for t in range(tokens)]
    found = apart(isa, layout, arrays, x, bias, start, [(0, cut), (cut, layout.N)])
    np.testing.assert_array_equal(found, np.stack(alone))


@pytest.mark.parametrize("isa", LONG)
@settings(max_examples=30, deadline=None)
@given(layouts(4, 32), st.sampled_from([1, 5, 20]), st.integers(0, 2**31))
@example(GroupsLayout(4, 300, 5, 32, ONE_ZERO), 1, 0)
def test_products_are_close_to_exact_sums(isa, layout, tokens, seed):
    """The reference is no proof of itself: its result is the product of int8 activations and the weights."""
    from tests.runtime_py.engine.group_reference import quantized

    rng = np.random.default_rng(seed)
    arrays, x = parts_of(layout, rng, np.float16), activations(rng, tokens, layout.K)
    q, scales = quantized(x)
    values = q * np.repeat(scales, 256, axis=1)[:, : layout.K].astype(np.float64)
    weights = layout.dequantized(*arrays).astype(np.float64)
    size = np.abs(arrays[1].astype(np.float64)).max() * 32 + np.abs(weights).max()
    bound = 1e-6 * np.abs(values).sum(axis=1, keepdims=True) * size + 1e-6
    assert np.all(np.abs(product(isa, layout, arrays, x) - values @ weights.T) <= bound)


@pytest.mark.parametrize("bits, group_size, dtype", [(4, 32, np.float16), (8, 64, np.float16)])
@pytest.mark.parametrize("offsets", [ONE_ZERO, ZEROS, MINIMA])
def test_every_instruction_set_gives_the_same_bits(bits, group_size, dtype, offsets):
    rng = np.random.default_rng(5)
    layout = GroupsLayout(bits, 900, 50, group_size, offsets)
    arrays = parts_of(layout, rng, dtype)
    for tokens in (1, 9):
        x = activations(rng, tokens, 900)
        for isa in HERE:
            np.testing.assert_array_equal(product(isa, layout, arrays, x), expected(layout, arrays, x), isa)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=6), st.sampled_from([ONE_ZERO, ZEROS, MINIMA]), st.randoms())
def test_any_runs_of_rows_are_the_whole(cuts, offsets, shuffler):
    """Threads share out rows in runs; the last rows are read from copies."""
    rng = np.random.default_rng(len(cuts))
    layout = GroupsLayout(4, 320, 60, 32, offsets)
    arrays, x = parts_of(layout, rng, np.float16), activations(rng, 1, 320)
    runs = list(itertools.pairwise(sorted({0, 60, *cuts})))
    shuffler.shuffle(runs)
    np.testing.assert_array_equal(product(HERE[0], layout, arrays, x, runs=runs), expected(layout, arrays, x))


def test_a_token_does_not_depend_on_its_neighbours():
    rng = np.random.default_rng(1)
    layout = GroupsLayout(4, 576, 30, 32, MINIMA)
    arrays, x = parts_of(layout, rng, np.float16), activations(rng, 40, 576)
    whole = product(HERE[0], layout, arrays, x)
    for first, last in ((0, 2), (5, 22), (16, 40)):
        np.testing.assert_array_equal(product(HERE[0], layout, arrays, x[first:last]), whole[first:last])


@pytest.mark.parametrize("isa", HERE)
@pytest.mark.parametrize("tokens", [1, 3])
def test_the_largest_integers_do_not_overflow(isa, tokens):
    layout = GroupsLayout(8, 256, 3, 256, ONE_ZERO)
    arrays = [np.array([[0], [255], [128]], np.uint8).repeat(256, axis=1), np.ones((3, 1), np.float16)]
    arrays.append(np.full((1, 1), 128, np.uint8))
    x = np.full((tokens, 256), 127, np.float32)
    np.testing.assert_array_equal(
        product(isa, layout, arrays, x), np.broadcast_to([-128 * 127 * 256, 127 * 127 * 256, 0], (tokens, 3))
    )


@settings(max_examples=30, deadline=None)
@given(st.data(), st.sampled_from([1, 2, 4, 5, 8]), st.sampled_from([16, 32, 48, 96, 512, 1000]), st.integers(0, 9))
def test_looked_up_rows_are_those_of_the_format(data, bits, group_size, seed):
    """Groups that are no power of two are cut into such, and one group a row into blocks."""
    layout = data.draw(layouts(bits, group_size))
    rng = np.random.default_rng(seed)
    arrays = parts_of(layout, rng, np.float16)
    row, keep = group_record(layout, *arrays)
    matrix = GroupMatrix.of(row.tolist())
    scratch, out, weights = aligned_bytes(256), np.zeros(layout.K, np.float32), layout.dequantized(*arrays)
    for n in range(layout.N):
        group_row(row.ctypes.data, matrix.group_columns, matrix.scale_bytes, n, out.ctypes.data, scratch.ctypes.data)
        np.testing.assert_array_equal(out.view(np.uint32), weights[n].view(np.uint32))
    del keep


@pytest.mark.parametrize("group_size", [48, 96, 192, 1000])
def test_odd_group_sizes_give_the_same_product(group_size):
    rng = np.random.default_rng(2)
    layout = GroupsLayout(4, 900, 20, group_size, ZEROS)
    if group_size == 1000:  # one group a row
        assert layout.groups == 1
    arrays = parts_of(layout, rng, np.float16)
    for tokens in (1, 4):
        x = activations(rng, tokens, 900)
        np.testing.assert_array_equal(product(HERE[0], layout, arrays, x), expected(layout, arrays, x))


@pytest.mark.parametrize("group_size", [1, 8, 20, 40])
def test_groups_without_a_kernel_are_left_to_the_interpreter(group_size):
    with pytest.raises(Unplannable, match="groups of"):
        kernel_group(GroupsLayout(4, 640, 4, group_size, ONE_ZERO))


@settings(max_examples=200, deadline=None)
@given(*[st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**40), max_value=2.0**40)] * 3)
def test_the_fused_product_of_the_reference_is_rounded_once(a, b, c):
    from fractions import Fraction

    exact = Fraction(a) * Fraction(b) + Fraction(c)
    found = Fraction(float(fused(a, b, c)))
    near = np.float32(float(found))
    others = (np.nextafter(near, np.float32(np.inf)), np.nextafter(near, np.float32(-np.inf)))
    assert all(abs(found - exact) <= abs(Fraction(float(other)) - exact) for other in others)
