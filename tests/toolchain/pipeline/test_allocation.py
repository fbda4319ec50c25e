"""Bit allocation: the knapsack against brute force, and a fractional budget on a real model."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.contract.errors import InputError
from toolchain.pipeline.allocation import candidate_widths, knapsack
from toolchain.pipeline.run import CalibrationChoice, quantize_model
from toolchain.settings.quantize import QuantizeSettings


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
