"""The integer products on every instruction set against a plain reference that quantizes activations the same way."""

from __future__ import annotations

import itertools

import numba as nb
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from export.contract.formats.codebook import CodebookLayout
from export.contract.formats.halves import HALF, joined
from export.contract.formats.trellis import TrellisLayout
from export.contract.packing import pack
from runtime_py.engine.kernels.matmul import matmul_item
from runtime_py.engine.kernels.matvec import matvec_rows
from runtime_py.engine.kernels.quantize import quantize_group, quantize_token
from runtime_py.engine.layout import products as sizes
from runtime_py.engine.layout.products import HIGH_GROUP, padded, width_tag
from runtime_py.engine.program import _allow_amx, _amx_config
from runtime_py.engine.records.stored_matrix import matrix_record, matrix_width
from runtime_py.machine.isa import ISAS, WEIGHT_OFFSET, available, has_amx
from runtime_py.machine.widths import HIGH_BYTES
from runtime_py.simd.tile import amx_block, amx_configure, amx_release
from runtime_py.system.guard_pages import aligned_bytes
from tests.runtime_py.engine.activation_reference import quantized, values, with_outliers
from tests.runtime_py.engine.instruction_sets import all_or_one, at_width, with_widths

AMX = has_amx() and _allow_amx()
KINDS = [(isa, False) for isa in available()] + ([("avx512vbmi", True)] if AMX else [])


@nb.njit
def all_rows(
    isa, width, tile, config, items, matrix, quantized, sums, scales, high, tokens, out, bias, accumulate, scratch
):
    if tile[2]:
        amx_configure(config)
    for item in range(items):
        matmul_item(
            isa, width, tile, matrix, item, quantized, sums, scales, high, tokens, out, bias, accumulate, 1, scratch
        )
    if tile[2]:
        amx_release()


def product(isa, amx, layout, stored, x, bias=None, start=None, runs=()):
    """The kernel's result: matvec for one token (its rows in the given runs), tiles for several."""
    record, keep = matrix_record(layout, *stored, halves=True)
    width = width_tag(matrix_width(record))
    tokens, columns = x.shape
    blocks, wide = -(-columns // 256), padded(columns)
    groups = -(-tokens // 32) * 2
    parts = (16 * wide, blocks * 64, blocks * 64, blocks * HIGH_GROUP)
    q, sums, scales, high = (aligned_bytes(groups * n) for n in parts)
    scratch = aligned_bytes(sizes.scratch_bytes(columns) + 8192)
    out = np.zeros((tokens, layout.N), np.float32) if start is None else start.copy()
    shift = 0 if bias is None else bias.ctypes.data
    tag, offset = ISAS[isa], WEIGHT_OFFSET[isa]
    addresses = [a.ctypes.data for a in (q, sums, scales, high)]
    if tokens == 1:
        quantize_token(tag, offset, x.ctypes.data, columns, 0, blocks, *addresses)
        for first, last in runs or [(0, layout.N)]:
            matvec_rows(
                tag, width, record.ctypes.data, *addresses, first, last, out.ctypes.data, shift, start is not None,
                scratch.ctypes.data,
            )  # fmt: skip
        return out
    for group in range(-(-tokens // 16)):
        quantize_group(
            tag, offset, x.ctypes.data, columns, columns, group, tokens, 0, blocks, *addresses, scratch.ctypes.data
        )
    rows, vectors = sizes.tile_shape(isa, amx)
    config = _amx_config()
    all_rows(
        tag, width, (rows, vectors, amx), config.ctypes.data, -(-layout.N // rows), record.ctypes.data,
        *addresses, tokens, out.ctypes.data, shift, start is not None, scratch.ctypes.data,
    )  # fmt: skip
    del keep, config
    return out


def random_parts(layout, rng):
    codes = pack(rng.integers(0, 1 << layout.bits, (layout.N, layout.K), dtype=np.uint8), layout.bits)
    book = rng.integers(-127, 128, layout.codebook_shape).astype(np.int8)
    if isinstance(layout, TrellisLayout) and rng.integers(2):  # levels that are sums have kernels of their own
        book = joined(rng.integers(-63, 64, (len(book), 2 * HALF)).astype(np.int8), layout.bits)
    return codes, book, rng.random(layout.scale_shape).astype(np.float32)


LAYOUTS = st.builds(
    CodebookLayout,
    bits=st.integers(1, 8),
    K=st.one_of(st.integers(1, 700), st.sampled_from([64, 128, 192, 256, 320, 384, 448, 512, 896])),
    N=st.integers(1, 70),
    group_size=st.just(0),
    rows_per_codebook=st.integers(1, 5),
    rows_per_scale=st.integers(1, 5),
)

PATHS = st.builds(
    TrellisLayout,
    bits=st.just(3),  # every width compiles the kernels anew; all of them on one instruction set below
    K=st.one_of(st.integers(1, 700), st.sampled_from([64, 192, 256, 512, 896])),
    N=st.integers(1, 70),
    state_bits=st.just(8),
    rows_per_codebook=st.integers(1, 80),
    rows_per_scale=st.integers(1, 5),
)


def weights_of(layout, parts):
    if isinstance(layout, TrellisLayout):
        return layout.dequantized(*parts).astype(np.float64)
    return layout.dequantized(*parts).astype(np.float64)


@pytest.mark.parametrize("isa, amx, width", all_or_one(KINDS))
@settings(max_examples=25)
@given(st.one_of(LAYOUTS, PATHS), st.integers(1, 40), st.booleans(), st.integers(0, 2**31))
@example(CodebookLayout(4, 7, 1), 1, False, 0)  # one row, less than one vector
@example(CodebookLayout(3, 64, 33), 33, True, 1)  # one row more than a tile, one token more than two groups
def test_product_of_quantized_activations(isa, amx, width, layout, tokens, more, seed):
    rng, layout = np.random.default_rng(seed), at_width(layout, width)
    parts = random_parts(layout, rng)
    x = (rng.standard_normal((tokens, layout.K)) * np.exp(rng.standard_normal((tokens, 1)))).astype(np.float32)
    x = with_outliers(x, rng) if seed % 2 else x
    bias = rng.standard_normal(layout.N).astype(np.float32) if more else None
    start = rng.standard_normal((tokens, layout.N)).astype(np.float32) if more else None
    weights = weights_of(layout, parts)
    given = values(x)
    expected = given @ weights.T
    magnitude = np.abs(given) @ np.abs(weights).T + 1
    if more:
        expected = expected + bias + start
    # Integers are exact; what remains are float32 roundings of one sum per block and of the three last operations.
    assert np.all(np.abs(product(isa, amx, layout, parts, x, bias, start) - expected) <= 1e-6 * magnitude)


@pytest.mark.parametrize("isa, amx, bits", with_widths(KINDS, range(1, 9)))
@pytest.mark.parametrize("tokens", [1, 20])
def test_integers_of_one_block_are_exact(isa, amx, bits, tokens):
    """With scales of one a block's result is a whole number below 2**24, which float32 holds exactly."""
    rng = np.random.default_rng(bits)
    layout = CodebookLayout(bits, 256, 37)
    codes, book, _ = random_parts(layout, rng)
    if bits == 8:
        book[:] = np.arange(-128, 128)  # the width without lookup
    codes[0] = 255  # every code at its highest
    parts = (codes, book, np.ones(layout.scale_shape, np.float32))
    x = rng.integers(-127, 128, (tokens, 256)).astype(np.float32)
    x[:, 0] = 127  # the scale becomes one
    expected = x.astype(np.int64) @ layout.dequantized(*parts).astype(np.int64).T
    np.testing.assert_array_equal(product(isa, amx, layout, parts, x), expected)


@pytest.mark.parametrize("layout", [CodebookLayout(3, 900, 50), TrellisLayout(3, 900, 50, 8, 32)])
@pytest.mark.parametrize("tokens", [1, 9])
def test_every_instruction_set_gives_the_same_bits(tokens, layout):
    rng = np.random.default_rng(5)
    parts = random_parts(layout, rng)
    x = with_outliers(rng.standard_normal((tokens, 900)).astype(np.float32), rng)
    first, *others = (product(isa, amx, layout, parts, x) for isa, amx in KINDS)
    for other in others:
        np.testing.assert_array_equal(first, other)


@pytest.mark.parametrize("isa, amx", [KINDS[0], *(pytest.param(*kind, marks=pytest.mark.long) for kind in KINDS[1:])])
@pytest.mark.parametrize("bits", range(1, 5))
@settings(max_examples=10)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=6), st.integers(1, 70), st.integers(0, 2**31))
def test_paths_may_begin_anywhere(isa, amx, bits, cuts, book_rows, seed):
    """Threads share out the rows of a matrix in runs: the parts are the whole, bit for bit."""
    rng = np.random.default_rng(seed)
    layout = TrellisLayout(bits, 320, 60, 8, book_rows)
    parts, x = random_parts(layout, rng), with_outliers(rng.standard_normal((1, 320)).astype(np.float32), rng)
    whole = product(isa, amx, layout, parts, x)
    ends = sorted({0, 60, *cuts})
    runs = list(itertools.pairwise(ends))
    rng.shuffle(runs)
    np.testing.assert_array_equal(product(isa, amx, layout, parts, x, runs=runs), whole)
    given = values(x)
    expected, magnitude = given @ weights_of(layout, parts).T, np.abs(given) @ np.abs(weights_of(layout, parts)).T + 1
    assert np.all(np.abs(whole - expected) <= 1e-6 * magnitude)


@pytest.mark.parametrize("isa, amx", KINDS)
@pytest.mark.parametrize("tokens", [1, 2, 16, 17, 40])
@pytest.mark.parametrize("columns", [256, 100, 64])
def test_high_digits_are_exact(isa, amx, tokens, columns):
    """With a scale of one the results are whole numbers below 2**24, which float32 holds exactly."""
    rng = np.random.default_rng(tokens + columns)
    layout = CodebookLayout(4, columns, 37)
    codes, book, _ = random_parts(layout, rng)
    parts = (codes, np.clip(book, -3, 3).astype(np.int8), np.ones(layout.scale_shape, np.float32))
    x = rng.integers(-127, 128, (tokens, columns)).astype(np.float32)
    x[:, 0] = 127  # the scale becomes one
    some = 3 if columns == 256 else 1
    for row in x[:: 1 if tokens < 16 else 3]:
        at, signs = rng.choice(np.arange(1, columns), some, replace=False), rng.choice([-1, 1], some)
        row[at] = signs * rng.integers(20000, 30000, some)
    integers, scales = quantized(x)
    assert (integers == x).all() and (scales == 1).all() and np.abs(integers).max() > 127
    expected = integers @ layout.dequantized(*parts).astype(np.int64).T
    np.testing.assert_array_equal(product(isa, amx, layout, parts, x), expected)


@pytest.mark.parametrize("isa, amx", KINDS)
@pytest.mark.parametrize("tokens", [1, 20])
def test_the_largest_integers_fit_32_bits(isa, amx, tokens):
    """Every weight -128 and as many of the largest integers as the limit allows, which is far below the bound."""
    layout = CodebookLayout(8, 256, 33)
    codes, book, _ = random_parts(layout, np.random.default_rng(0))
    book[:] = -128
    x = np.full((tokens, 256), 1.0, np.float32)
    x[:, :6] = 1e6
    integers, scales = quantized(x)
    assert np.abs(integers).max() == 32512
    found = product(isa, amx, layout, (codes, book, np.ones(layout.scale_shape, np.float32)), x)
    expected = (integers.sum(axis=1) * -128).astype(np.float32) * scales[:, 0]
    lanes = expected if tokens > 1 else np.float32(-128.0) * np.float32(integers.sum()) * scales[:, 0]
    np.testing.assert_allclose(found, np.broadcast_to(lanes[:, None], found.shape), rtol=1e-6)


def test_a_token_does_not_depend_on_those_beside_it():
    """Also where a neighbour's outlier adds places of high digits, and in an odd number of groups."""
    rng, layout = np.random.default_rng(3), CodebookLayout(4, 700, 40)
    parts = random_parts(layout, rng)
    x = with_outliers(rng.standard_normal((40, 700)).astype(np.float32), rng)
    whole = product(KINDS[0][0], False, layout, parts, x)
    for first, last in ((0, 2), (5, 22), (16, 40), (31, 33)):
        np.testing.assert_array_equal(product(KINDS[0][0], False, layout, parts, x[first:last]), whole[first:last])


@nb.njit
def one_amx_block(weights, wide, low, sums, scales, high, per_high, totals, spill):
    amx_block(weights, wide, low, 0, sums, scales, 64, high, per_high, 0, totals, spill)


@pytest.mark.skipif(has_amx() or "avx512vbmi" not in available(), reason="the tiles themselves are tested with AMX")
@pytest.mark.parametrize("filled", [(5, 0), (0, 64), (3, 1), (0, 0)])
def test_high_digits_are_added_to_the_sums_of_amx_tiles(filled):
    """Where there is no AMX the code of the tiles is left out, so the sums are those that lie there before."""
    rng, wide = np.random.default_rng(sum(filled)), 320
    weights = rng.integers(0, 256, (32, wide)).astype(np.uint8)
    tiles = rng.integers(-1000, 1000, (2, 2, 16, 16)).astype(np.int32)  # of rows, of groups
    sums, scales = rng.integers(-1000, 1000, (2, 16)).astype(np.int32), np.ones((2, 16), np.float32)
    high, digits = np.zeros((2, HIGH_GROUP), np.uint8), np.zeros((2, 64, 16, 4), np.int8)
    for v, count in enumerate(filled):
        places = rng.choice(64, count, replace=False)
        digits[v, places] = rng.integers(-2, 3, (count, 16, 4))
        high[v, :8] = np.array([sum(1 << int(i) for i in places)], np.uint64).view(np.uint8)
        noise = rng.integers(0, 256, (64, 16, 4)).astype(np.uint8)  # where no place says that there is a digit
        noise[places] = digits[v, places].view(np.uint8)
        high[v, HIGH_BYTES:] = noise.reshape(-1)
    totals, spill = np.zeros((32, 2, 16), np.float32), tiles.copy()
    one_amx_block(
        weights.ctypes.data, wide, 0, sums.ctypes.data, scales.ctypes.data, high.ctypes.data, HIGH_GROUP,
        totals.ctypes.data, spill.ctypes.data,
    )  # fmt: skip
    four = weights[:, :256].astype(np.int64).reshape(32, 64, 4)
    upper = np.einsum("rkc,vktc->rvt", four, digits.astype(np.int64))
    expected = tiles.transpose(0, 2, 1, 3).reshape(32, 2, 16) + sums + 255 * upper
    assert np.abs(expected).max() < 1 << 24
    np.testing.assert_array_equal(totals, expected)


@settings(max_examples=200)
@given(st.integers(1, 600), st.integers(0, 2**31))
def test_no_number_is_less_exact_than_with_the_largest_as_127(columns, seed):
    """Half a step of plain int8 is the most by which an activation may be off, outliers or not."""
    rng = np.random.default_rng(seed)
    x = with_outliers(rng.standard_normal((8, columns)).astype(np.float32), rng)
    for start in range(0, columns, 256):
        part = x[:, start : start + 256]
        step = np.abs(part).max(axis=1, keepdims=True).astype(np.float64) / 127
        assert (np.abs(values(part) - part) <= step * 0.5 * (1 + 1e-5)).all()


def test_zero_activations_give_zero():
    layout = CodebookLayout(4, 300, 20)
    parts = random_parts(layout, np.random.default_rng(0))
    for tokens in (1, 3):
        assert not product(KINDS[0][0], False, layout, parts, np.zeros((tokens, 300), np.float32)).any()
