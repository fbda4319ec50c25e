"""Columns apart: who is chosen, what the codes then serve, and what is stored."""

from __future__ import annotations

import numpy as np
import pytest

from export.contract.errors import InputError
from export.contract.sparse import SparseLayout
from toolchain.numerics.factors import ready_hessian
from toolchain.numerics.hessian import layer_loss
from toolchain.quantize import method
from toolchain.quantize.addons.columns import dominant_columns, remaining, with_columns
from toolchain.settings.presets import Quantization
from toolchain.settings.quantize import QuantizeSettings

COLUMNS, ROWS = 192, 48


def inputs(massive: dict[int, float], tokens: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """Activations of ordinary tokens, and those of a few whose inputs at some columns are as large as that."""
    rng = np.random.default_rng(0)
    mixing = np.eye(COLUMNS) + 0.1 * rng.standard_normal((COLUMNS, COLUMNS))
    ordinary, few = rng.standard_normal((tokens, COLUMNS)) @ mixing, rng.standard_normal((8, COLUMNS))
    for column, size in massive.items():
        few[:, column] = size * rng.standard_normal(8)
    return ordinary, few


def hessian_of(*parts: np.ndarray) -> np.ndarray:
    x = np.concatenate(parts)
    return 2 * x.T @ x / len(x)


@pytest.mark.parametrize("massive", [{}, {7: 1e3}, {7: 1e3, 100: 900.0}, {7: 1e4, 100: 6e3, 3: 8e3}])
def test_columns_that_a_few_tokens_own_are_found(massive):
    ordinary, few = inputs(massive)
    h = hessian_of(ordinary, few) if massive else hessian_of(ordinary)
    assert set(dominant_columns(h, 0.05)) == set(massive)


def test_no_more_than_allowed_and_the_worst_first():
    h = hessian_of(*inputs({7: 1e3, 100: 9e4}))
    assert [set(dominant_columns(h, 0.05, most)) for most in (0, 1, 2, 3)] == [set(), {100}, {7, 100}, {7, 100}]


def test_of_few_columns_none_is_apart():
    h = np.diag([1e6, *np.ones(31)])
    assert not dominant_columns(h, 0.05).size
    assert remaining(h, 0.05)[0] is h


@pytest.mark.parametrize("tokens", [1, 2, 8, 100])
@pytest.mark.parametrize("damping", [0.0, 1e-8, 0.01])
def test_few_tokens_leave_a_hessian_that_can_be_factorized(tokens, damping):
    ordinary, few = inputs({7: 1e5, 100: 1e5}, tokens=tokens)
    h, w = hessian_of(ordinary, few), np.random.default_rng(1).standard_normal((ROWS, COLUMNS)) * 0.05
    left, columns = remaining(h, damping)
    assert columns and np.isfinite(ready_hessian(left, damping).factor).all()
    result = with_columns(method("athena"), None, w, h, QuantizeSettings(bits=3, damping=damping))
    assert np.isfinite(result.dequantized()).all()


def test_codes_serve_ordinary_tokens():
    """Held-out ordinary tokens: the loss is that of codes found without massive tokens, and theirs falls, too."""
    ordinary, few = inputs({7: 2e3, 100: 1.5e3}, tokens=6000)
    seen, held_out = ordinary[:2000], ordinary[2000:]
    h, w = hessian_of(seen, few), np.random.default_rng(1).standard_normal((ROWS, COLUMNS)) * 0.05
    settings = QuantizeSettings(bits=3, format="trellis", passes=2, damping=0.05)
    plain, apart = method("athena")(w, h, settings), with_columns(method("athena"), None, w, h, settings)
    alone = method("athena")(w, hessian_of(seen), settings)
    own, every = hessian_of(held_out), hessian_of(held_out, few)
    lost = [layer_loss(w - q.dequantized(), own) / layer_loss(w, own) for q in (plain, apart, alone)]
    assert lost[1] < 0.6 * lost[0] and lost[1] < 1.1 * lost[2]
    assert layer_loss(w - apart.dequantized(), every) < 0.1 * layer_loss(w - plain.dequantized(), every)
    assert apart.losses["columns_apart"] < 0.5 * plain.losses["refinement"]  # both with damping


def test_what_is_apart_is_the_least_squares_correction():
    ordinary, few = inputs({7: 2e3})
    h, w = hessian_of(ordinary, few), np.random.default_rng(1).standard_normal((ROWS, COLUMNS)) * 0.05
    result = with_columns(method("athena"), None, w, h, QuantizeSettings(bits=2, format="trellis", damping=0.05))
    places = SparseLayout(COLUMNS, ROWS).places(result.outliers.gaps, result.outliers.values)
    np.testing.assert_array_equal(places, np.arange(ROWS) * COLUMNS + 7)
    gradient = (w - result.dequantized()) @ h
    # float16 leaves half of the last place of a weight
    assert np.abs(gradient[:, 7]).max() < 2**-10 * np.abs(w[:, 7]).max() * h[7, 7]
    tensors, record = result.stored("w")
    assert record.bytes == sum(array.nbytes for array in tensors.values())


@pytest.mark.parametrize(
    "given", [{"outliers": 0.01}, {"guided_groups": 2, "guided": True}, {"bits": 4, "nested": 2}, {"method": "rtn"},
              {"budget": "45ms", "budget_target": "rpi5"},
              {"method": "qrazor"}],
)  # fmt: skip
def test_what_excludes_columns_apart(given):
    assert not Quantization.from_given(given).settings.columns_apart
    with pytest.raises(InputError, match="--columns-apart does not go with"):
        Quantization.from_given({"columns_apart": True, **given})


def test_presets_keep_columns_apart():
    assert Quantization.from_given({"bits": 3}).settings.columns_apart
    assert Quantization.from_given({"bits": 3, "preset": "best"}).settings.columns_apart
    assert not Quantization.from_given({"bits": 3, "preset": "fast"}).settings.columns_apart
