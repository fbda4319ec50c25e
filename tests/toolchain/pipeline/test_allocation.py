"""Bit allocation: the knapsack against brute force, and a fractional budget on a real model."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.contract.errors import InputError
from tests.toolchain.quantize.test_quantize import problem
from toolchain.calibrate.gradients import PLAN_SEQUENCES, with_gradients
from toolchain.numerics.hessian import damped, layer_loss
from toolchain.pipeline.allocation import (
    candidate_widths,
    expected_error,
    knapsack,
    planned,
    unexplained,
)
from toolchain.pipeline.run import CalibrationChoice, quantize_model
from toolchain.quantize import method
from toolchain.settings.quantize import QuantizeSettings
from toolchain.settings.solver import PLANNED


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 2**31), st.floats(0.0, 1.0))
def test_knapsack_is_optimal(items, options, seed, tightness):
    rng = np.random.default_rng(seed)
    sizes = np.sort(rng.integers(1, 30, (items, options)), axis=1).tolist()
    losses = (-np.sort(-rng.random((items, options)), axis=1)).tolist()
    low, high = sum(s[0] for s in sizes), sum(s[-1] for s in sizes)
    budget = int(low + tightness * (high - low))
    best = min(
        sum(losses[i][o] for i, o in enumerate(choice))
        for choice in itertools.product(range(options), repeat=items)
        if sum(sizes[i][o] for i, o in enumerate(choice)) <= budget
    )
    chosen = knapsack(losses, sizes, budget)
    assert sum(sizes[i][o] for i, o in enumerate(chosen)) <= budget
    assert sum(losses[i][o] for i, o in enumerate(chosen)) == pytest.approx(best)


def test_impossible_budget_is_refused():
    with pytest.raises(InputError, match="below the smallest possible size"):
        knapsack([[1.0]], [[10]], 9)
    assert candidate_widths(3.25) == [2, 3, 4, 5]
    assert candidate_widths(1.5) == [1, 2, 3]


def test_fractional_bits_spend_the_budget_unevenly(demo_model, demo_text, tmp_path):
    options = QuantizeSettings(budget=3.25, passes=1, sequences=16, sequence_length=128)
    text = CalibrationChoice(str(demo_text), "0:0.5")
    checkpoint = quantize_model(str(demo_model), tmp_path / "q", options, text, quiet=True)
    effective = checkpoint.manifest["totals"]["effective_bits"]
    assert 3.2 < effective <= 3.25
    widths = {record.bits for name, record in checkpoint.records.items() if "layers" in name and record.bits}
    assert len(widths) > 1


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 30), st.integers(0, 1000))
def test_what_stays_unexplained_is_the_loss_of_the_sweep(columns, seed):
    """Against errors drawn at random, passed on column after column by the literal block update."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((3 * columns, columns)) @ rng.standard_normal((columns, columns))
    hessian = x.T @ x
    h, _ = damped(hessian, 0.01)
    order = np.argsort(-np.diag(h), kind="stable")
    rest, expected = h[np.ix_(order, order)], 0.0
    for _ in range(columns):  # the variance of a column that those behind it do not explain
        expected += 1.0 / np.linalg.inv(rest)[0, 0]
        rest = rest[1:, 1:]
    assert unexplained(hessian, 0.01) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("form", ["codebook", "trellis"])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_expected_losses_are_those_that_quantizing_leaves(form, bits):
    w, h = problem(3, 256, 192)
    result = method("athena")(w, h, QuantizeSettings(bits=bits, format=form, passes=0, rows_per_codebook=256))
    error = w - result.dequantized()
    expected = expected_error(bits, form == "trellis") * float((w**2).mean(axis=1).sum()) * unexplained(h, 0.01)
    # codebooks are fitted to these weights, so less than for any is left
    assert 0.65 * expected < layer_loss(error, damped(h, 0.01)[0]) < 1.2 * expected


def test_wider_codes_leave_less():
    for trellis in (False, True):
        left = [expected_error(bits, trellis) for bits in range(1, 9)]
        assert left == sorted(left, reverse=True) and all(a > 2.3 * b for a, b in itertools.pairwise(left))


def test_spread_widths_cost_a_tenth_of_a_bit(demo_model, demo_text, tmp_path):
    options = QuantizeSettings(bits=3, spread=True, passes=0, sequences=4, sequence_length=64)
    checkpoint = quantize_model(str(demo_model), tmp_path / "q", options, CalibrationChoice(str(demo_text)), quiet=True)
    assert 3.05 < checkpoint.manifest["totals"]["effective_bits"] <= 3.1
    widths = [record.bits for name, record in checkpoint.records.items() if "layers" in name and record.bits]
    assert len(set(widths)) > 1


def test_a_plan_looks_at_sequences_from_everywhere():
    chosen = planned(0, 100)
    assert len(chosen) == PLAN_SEQUENCES and chosen[-1] > 90
    np.testing.assert_array_equal(planned(0, 5), np.arange(5))
    for gradients in (1, 7, 16, 50, PLANNED):  # by 7 of 64 and by 16 of 64 they once had two in common
        chosen = planned(gradients, 64)
        assert len(chosen) == min(gradients % 64, PLAN_SEQUENCES) and set(chosen) <= set(with_gradients(gradients, 64))
    np.testing.assert_array_equal(with_gradients(PLANNED, 64), planned(PLANNED, 64))
    np.testing.assert_array_equal(with_gradients(0, 64), np.arange(64))
