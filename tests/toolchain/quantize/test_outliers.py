"""Weights stored apart: every selector, losses that only fall, exact records, tuning beside them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from export.artefacts.stored_matrix import StoredMatrix
from export.contract.errors import InputError
from tests.toolchain.quantize.test_quantize import problem, relative_loss
from toolchain.quantize import method
from toolchain.quantize.addons.outliers import with_outliers
from toolchain.quantize.packed import weight_dtype
from toolchain.settings.quantize import QuantizeSettings
from toolchain.settings.solver import OUTLIER_SELECTORS
from toolchain.tune.trainable import trainable_layer

METHODS = [
    {},
    {"format": "trellis", "state_bits": 5},
    {"format": "vectors", "dimension": 2},
    {"method": "gptq"},
    {"method": "squeezellm"},
]


@settings(max_examples=30)
@given(st.sampled_from(METHODS), st.sampled_from(OUTLIER_SELECTORS), st.integers(1, 40), st.integers(2, 70),
       st.sampled_from([0.0045, 0.05]), st.integers(0, 1000))  # fmt: skip
def test_the_step_never_raises_the_loss_and_the_record_is_true(choice, selector, rows, columns, share, seed):
    w, h = problem(seed, rows, columns)
    options = QuantizeSettings(**{"bits": 3, "passes": 1, **choice}, outliers=share, outliers_by=selector)
    fisher = np.random.default_rng(seed).random(w.shape).astype(np.float32)
    own = (fisher,) if options.method == "squeezellm" else ()
    result = with_outliers(method(options.method), w, h, options, fisher, own)
    steps = [loss for name, loss in result.losses.items() if name != "damping"]
    # float16 values: an error of 2**-11 of the numbers kept apart, whose energy may be nearly all there is
    assert steps[-1] <= steps[-2] * (1 + 1e-4) + 2.0**-22
    assert relative_loss(result, w, h) == pytest.approx(steps[-1], rel=2e-3, abs=1e-8)
    tensors, record = result.stored("w")
    assert record.bytes == sum(array.nbytes for array in tensors.values())
    assert record.outliers == round(share * w.size) == tensors["w.outlier_values"].size
    again = StoredMatrix.restored(record, lambda suffix: tensors.get("w" + suffix))
    np.testing.assert_array_equal(again.dequantized(), result.dequantized())
    layer = trainable_layer(nn.Linear(columns, rows), result)
    np.testing.assert_allclose(layer.weight_matrix().detach().numpy(), result.dequantized(), atol=1e-6)
    np.testing.assert_allclose(layer.to_stored({}).dequantized(), result.dequantized(), atol=1e-6)


def test_outliers_rescue_a_matrix_that_has_some():
    rng = np.random.default_rng(0)
    w, h = rng.standard_normal((64, 64)) * 0.05, np.diag(rng.uniform(0.5, 2.0, 64))  # no column can help another
    w.ravel()[rng.permutation(w.size)[:20]] *= 30
    plain = method("athena")(w, h, QuantizeSettings(bits=3))
    for selector in ("sensitivity", "magnitude"):
        options = QuantizeSettings(bits=3, outliers=0.005, outliers_by=selector)
        apart = with_outliers(method("athena"), w, h, options)
        assert relative_loss(apart, w, h) < 0.5 * relative_loss(plain, w, h)


@pytest.mark.parametrize(
    "given_, message",
    [
        ({"outliers": 0.2}, "--outliers must be 0.0 to 0.1"),
        ({"outliers_by": "luck"}, "sensitivity, gradient, magnitude"),
        ({"outliers": 0.01, "method": "qrazor"}, "--outliers does not go with|computes on integers"),
        ({"outliers": 0.01, "guided": True, "guided_groups": 4}, "--outliers does not go with"),
    ],
)
def test_impossible_settings_are_refused(given_, message):
    with pytest.raises(InputError, match=message):
        QuantizeSettings(**given_)


@settings(max_examples=60)
@given(st.floats(-30, 30), st.floats(-30, 30), st.integers(0, 999))
def test_numbers_are_stored_in_what_holds_them(power, other, seed):
    """Weights of every size, one of them of another: 11 bits of the whole are kept, beyond float16 and below it."""
    values = np.random.default_rng(seed).standard_normal((20, 30)).astype(np.float32) * np.float32(10.0**power)
    values[3, 4] = 10.0**other
    dtype = weight_dtype(values)
    stored = values.astype(dtype).astype(np.float64)
    assert np.linalg.norm(stored - values) <= 2**-10 * np.linalg.norm(values.astype(np.float64))
    if -4 < power < 4 and other < 4:
        assert dtype is np.float16


@pytest.mark.parametrize("size", [1e7, 1e-7])
def test_outliers_beyond_float16(size):
    w, h = problem(3, 12, 32)
    options = QuantizeSettings(bits=3, passes=1, outliers=0.05)
    expected = relative_loss(with_outliers(method("athena"), w, h, options), w, h)
    result = with_outliers(method("athena"), w * size, h, options)
    assert result.outliers.values.dtype == np.float32
    assert relative_loss(result, w * size, h) == pytest.approx(expected, rel=0.05)
