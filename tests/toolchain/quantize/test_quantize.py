"""Quantization methods on random and awkward matrices: losses that only fall, honest bits, exact storage."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.contract.errors import InputError
from toolchain.numerics.hessian import damped, layer_loss
from toolchain.quantize import METHODS, method
from toolchain.quantize.addons.low_rank import factors
from toolchain.settings.quantize import QuantizeSettings
from toolchain.settings.razor import RazorSettings


def problem(seed, rows, columns):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((4 * columns, columns)) @ rng.standard_normal((columns, columns)) * 0.2
    return rng.standard_normal((rows, columns)) * rng.uniform(0.01, 0.1, (rows, 1)), 2 * x.T @ x / len(x)


def options_for(name, **given):
    """Settings of a method; qrazor and tender compute on integers and ask how many bits activations have."""
    groups = 8 if name == "tender" else 0
    integers = name in ("qrazor", "tender")
    razor = RazorSettings(activation_bits=8, activation_groups=groups) if integers else RazorSettings()
    return QuantizeSettings(method=name, razor=razor, sparsity="2:4" if name == "slim" else None, **given)


def relative_loss(result, w, h, damping=0.01):
    h = damped(h, damping)[0]
    return layer_loss(w - result.dequantized().astype(np.float64), h) / layer_loss(w, h)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 5), st.integers(1, 40), st.integers(2, 90), st.sampled_from([0, 16, 33]),
    st.sampled_from([0, 1, 3, 64]), st.sampled_from([0, 4, 16]), st.integers(0, 1000),
)  # fmt: skip
def test_athena_steps_never_raise_the_loss_and_the_record_is_true(bits, rows, columns, group, shared, scale, seed):
    w, h = problem(seed, rows, columns)
    options = QuantizeSettings(bits=bits, group_size=group, rows_per_codebook=shared, scale_bits=scale, passes=2)
    result = method("athena")(w, h, options)
    steps = result.losses
    assert steps["sweep"] <= steps["clustering"] * (1 + 1e-9)
    assert steps["refinement"] <= steps["sweep"] * (1 + 1e-9)
    final = steps.get("coded_scales", steps["refinement"])
    # float32 dequantization of float64 arithmetic: relative error 1e-6 of weights, far below the loss itself
    assert relative_loss(result, w, h) == pytest.approx(final, rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_athena_beats_round_to_nearest_at_fewer_bits(bits):
    w, h = problem(0, 64, 172)
    athena = method("athena")(w, h, QuantizeSettings(bits=bits))
    rtn = method("rtn")(w, h, QuantizeSettings(bits=bits, group_size=64))
    assert athena.stored("w")[1].effective_bits < rtn.stored("w")[1].effective_bits
    assert relative_loss(athena, w, h) < 0.6 * relative_loss(rtn, w, h)


def test_low_rank_term_is_optimal_and_lowers_the_loss():
    w, h = problem(1, 30, 40)
    h = damped(h, 0.01)[0]
    a, b = factors(w, h, 5)
    best = layer_loss(w - b @ a, h)
    singular = np.linalg.svd(w @ np.linalg.cholesky(h), compute_uv=False)
    assert best == pytest.approx((singular[5:] ** 2).sum(), rel=1e-9)
    result = method("athena")(w, h, QuantizeSettings(bits=2, rank=4))
    assert result.losses["low_rank"] < result.losses["coded_scales"]
    assert result.low_rank is not None and result.low_rank[0].shape == (4, 40)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("bits", range(1, 9))
def test_awkward_matrices(name, bits):
    """Constant columns, dead inputs, equal rows, zero rows, more levels than values, one row, one column."""
    if name in ("qrazor", "tender", "abq") and bits == 1:
        with pytest.raises(InputError, match="takes --bits 2 to 8"):
            options_for(name, bits=bits)
        return
    if name == "slim" and bits in (1, 8):
        with pytest.raises(InputError, match="takes --bits 2 to 7"):
            options_for(name, bits=bits)
        return
    w, h = problem(2, 9, 21)
    w[:, 3], w[4], w[5] = 0.5, 0.25, 0.0
    h[7, :] = h[:, 7] = 0.0
    for matrix, hessian in ((w, h), (w[:1], h), (w[:, :1], h[:1, :1]), (np.zeros((3, 21)), h), (w * 1e-7, h)):
        result = method(name)(matrix, hessian, options_for(name, bits=bits))
        restored = result.dequantized()
        assert restored.shape == matrix.shape
        assert np.isfinite(restored).all()
        assert np.abs(restored).max() <= 4 * np.abs(matrix).max() + 1e-12


@pytest.mark.parametrize("name", METHODS)
def test_same_result_for_any_number_of_threads(name):
    import numba

    w, h = problem(3, 40, 64)
    before = numba.get_num_threads()
    results = []
    for threads in (1, before):
        numba.set_num_threads(threads)
        results.append(method(name)(w, h, options_for(name)))
    numba.set_num_threads(before)
    for part in ("codes", "codebook", "scale"):
        np.testing.assert_array_equal(results[0][part], results[1][part])


def test_effective_bits_count_every_byte():
    w, h = problem(4, 64, 64)
    tensors, record = method("athena")(w, h, QuantizeSettings(bits=3, rank=2)).stored("w")
    assert record.bytes == sum(array.nbytes for array in tensors.values())
    assert set(tensors) == {
        "w.codes", "w.codebook", "w.scale.codes", "w.scale.codebook", "w.scale.scale", "w.lowrank_a", "w.lowrank_b",
    }  # fmt: skip
    codes, books, scales = 64 * 64 * 3 // 8, 2 * 8, 64 * 4 // 8 + 16 + 4  # the scales' unit is a float32 here
    assert record.bytes == codes + books + scales + 2 * 2 * (64 + 64)
    assert record.effective_bits == pytest.approx(8 * record.bytes / 4096)


@pytest.mark.parametrize(
    "field, value",
    [("bits", 0), ("bits", 9), ("passes", -1), ("damping", 11.0), ("embedding_bits", 12), ("scale_bits", 1)],
)
def test_settings_out_of_range_name_themselves(field, value):
    with pytest.raises(InputError, match=field.replace("_", "-")):
        QuantizeSettings(**{field: value})


def test_unknown_method_lists_the_known_ones():
    with pytest.raises(InputError, match="athena, rtn"):
        method("magic")
