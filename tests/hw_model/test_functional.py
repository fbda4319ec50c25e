"""The accelerators' arithmetic: published test vectors exactly, and properties of what the papers leave open."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw_model.functional import attentionlego as lego
from hw_model.functional import rap

INT8 = st.integers(-128, 127)


def test_attentionlego_table():
    table = lego.softmax_table()
    assert [hex(table[u]) for u in (0x00, 0x40, 0x80, 0xC0, 0xFF)] == [
        "0x5e2d",
        "0x9b45",
        "0x10000",
        "0x1a612",
        "0x2b276",
    ]


@pytest.mark.parametrize(
    "codes, outputs",
    [
        ([0x80] * 32, [8] * 32),
        ([0x00] * 31 + [0xFF], [6] * 31 + [48]),
        ([0x00] * 16 + [0x80] * 8 + [0xFF] * 8, [2] * 16 + [7] * 8 + [19] * 8),
    ],
)
def test_attentionlego_softmax_vectors(codes, outputs):
    assert lego.softmax(np.array(codes, np.uint8)).tolist() == outputs


@given(st.lists(st.lists(INT8, min_size=37, max_size=37), min_size=1, max_size=3), st.integers(0, 2**31))
def test_attentionlego_product_is_exact_with_enough_bits(rows, seed):
    x = np.array(rows, np.int8)
    w = np.random.default_rng(seed).integers(-128, 128, (5, 37)).astype(np.int8)
    exact = x.astype(np.int64) @ w.T.astype(np.int64)
    assert np.array_equal(lego.product(x, w, adc_bits=20, lsb=1), exact)
    conversions = 17 * -(-37 // 16)  # the upper slice counts 16 times
    assert np.all(np.abs(lego.product(x, w, adc_bits=16, lsb=64) - exact) <= 32 * conversions)


@pytest.mark.parametrize(
    "values, bits, shift, expected",
    [([1300, -77, 512, -2048], 8, 4, [81, -5, 32, -128]), ([13, -9, 4, 2], 4, 1, [6, -5, 2, 1])],
)
def test_shift_parse_vectors(values, bits, shift, expected):
    q, s = rap.shift_parse(np.array(values), bits)
    assert q.tolist() == expected and int(s[0]) == shift


@given(st.lists(st.integers(-(2**40), 2**40), min_size=1, max_size=20), st.integers(2, 16))
def test_shift_parse_uses_the_least_shift_that_fits(values, bits):
    q, s = rap.shift_parse(np.array(values), bits)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    assert low <= q.min() and q.max() <= high
    shift = int(s[0])
    assert [v >> shift for v in values] == q.tolist()
    if shift:
        assert any(not low <= v >> (shift - 1) <= high for v in values)


def test_softmax_vector():
    e = rap.exponentials(np.array([32, 16, 0, -16]), 4, 8)
    assert e.tolist() == [4096, 1600, 576, 216] and e.sum() == 6488
    p = rap.softmax(np.array([32, 16, 0, -16]), 4, 8) / 2**15
    assert p == pytest.approx([0.631, 0.247, 0.089, 0.033], abs=0.02)  # the reciprocal's table has 16 entries


@given(st.lists(st.floats(-20, 20), min_size=2, max_size=30))
def test_softmax_is_near_the_exact_one(values):
    x = np.array(values)
    exact = np.exp(x - x.max()) / np.exp(x - x.max()).sum()
    # log2(e) as 1.4375 bends the base by 0.4 %, 2**f as 1 + f by 6 %, the reciprocal's table by 3 %.
    assert np.abs(rap.softmax(np.rint(x * 64).astype(np.int64)) / 2**15 - exact).max() < 0.08


@given(st.floats(-30, 30))
def test_sigmoid_silu_and_gelu_are_near_the_exact_ones(value):
    fixed = np.array([round(value * 1024)])
    sigmoid = 1 / (1 + np.exp(-value))
    assert rap.sigmoid(fixed, 10)[0] / 2**15 == pytest.approx(sigmoid, abs=0.05)
    assert rap.silu(fixed, 10)[0] / 1024 == pytest.approx(value * sigmoid, abs=0.12 + 0.03 * abs(value))
    assert rap.gelu(fixed, 10)[0] / 1024 == pytest.approx(
        value / (1 + np.exp(-1.702 * value)), abs=0.12 + 0.03 * abs(value)
    )


@given(st.integers(1, 2**50))
def test_inverse_root_is_within_a_tenth_of_a_percent(value):
    mantissa, shift = rap.inverse_root(np.array([value]))
    assert mantissa[0] * 2.0 ** (-15 - int(shift[0])) == pytest.approx(value**-0.5, rel=2e-3)


@given(st.lists(st.integers(-(2**15), 2**15 - 1), min_size=4, max_size=64).filter(lambda v: max(map(abs, v)) > 500))
def test_integer_norms(values):
    x = np.array(values, np.int64)
    norm, places = rap.rms_norm(x)
    assert norm / 2**places == pytest.approx(x / np.sqrt(np.mean(x.astype(float) ** 2)), abs=0.02)
    if x.std() > 100:
        centred, places = rap.layer_norm(x)
        assert centred / 2**places == pytest.approx((x - x.mean()) / x.std(), abs=0.03)


@given(st.integers(0, 2**62 - 1))
def test_bit_length(value):
    assert rap.bit_length(np.array([value]))[0] == value.bit_length()


def test_ones_splitting_vectors():
    plane = [int(c) for c in "1011011000011100"]
    assert rap.split_ones(np.array(plane), 4) == [[0, 2, 3, 5], [6, 11, 12, 13]]
    assert rap.split_ones(np.array(plane), 7) == [[0, 2, 3, 5, 6, 11, 12], [13]]
    assert (
        rap.is_lossless(7, 3) and rap.is_lossless(15, 4) and not rap.is_lossless(16, 4) and not rap.is_lossless(128, 7)
    )


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(0, 2**31), st.sampled_from([(7, 3), (15, 4), (3, 2)]))
def test_ones_splitting_is_exact_when_lossless(columns, tokens, seed, choice):
    rng = np.random.default_rng(seed)
    x, w = rng.integers(-128, 128, (tokens, columns)), rng.integers(-128, 128, (6, columns))
    assert np.array_equal(rap.product(x, w, *choice), x @ w.T)


def test_too_few_converter_bits_lose_accuracy():
    rng = np.random.default_rng(1)
    x, w = rng.integers(-128, 128, (4, 64)), rng.integers(-128, 128, (6, 64))
    assert not np.array_equal(rap.product(x, w, 15, 3), x @ w.T)


def test_the_noise_model_has_the_variance_that_the_fast_path_uses():
    rng = np.random.default_rng(2)
    x, w = rng.integers(-128, 128, (1, 48)), rng.integers(-128, 128, (400, 48))
    # Sums stay off the clipping borders: few ones would clip negative noise at zero.
    errors = np.concatenate([(rap.product(x, w, 15, 8, 0.12, seed) - x @ w.T)[0] for seed in range(30)])
    expected = rap.noise_variance(x.astype(np.int8), 15, 0.12)[0, 0]
    assert errors.var() == pytest.approx(expected, rel=0.1)
