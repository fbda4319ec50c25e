"""Activations in channel groups a power of two apart: groups, the shifting accumulator, wrong constants."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.contract.operators.integers import IntegerLayout, sdr_sums
from export.contract.operators.tender import (
    TenderFormat,
    calibrated,
    channel_order,
    group_of,
    placed,
    shift_accumulate,
    tender_quantize,
)


def test_groups_of_the_paper():
    """T = 8, three groups: thresholds 2, 4, 8."""
    np.testing.assert_array_equal(group_of(np.array([8, 3, 1.5, 4]), 3), [2, 1, 0, 1])
    high = np.array([8, 3, 1.5, 4])
    middle, shifts, unit = calibrated(-high, high, 3, 4)
    assert shifts.tolist() == [2, 1, 0, 1] and not middle.any()
    assert unit == pytest.approx(2 / 7)  # the lowest threshold over the largest code
    order, runs = channel_order(shifts, 2)
    assert order.tolist() == [0, -1, 1, 3, 2, -1] and runs.tolist() == [2, 1, 0]


def test_shifts_count_from_the_lowest_group_that_is_there():
    low, high = np.array([-1.0, -0.9, -0.3]), np.array([1.0, 0.8, 0.3])
    _, shifts, unit = calibrated(low, high, 16, 8)
    assert shifts.tolist() == [1, 1, 0] or shifts.tolist() == [2, 2, 0]
    assert unit * 127 * 2 ** int(shifts.max()) == pytest.approx(1.0, rel=1e-6)
    middle, shifts, unit = calibrated(np.zeros(3), np.zeros(3), 8, 4)  # dead channels
    assert not shifts.any() and unit == 1.0 and not middle.any()


def problem(seed: int, tokens: int, columns: int, groups: int, width: int, group_size: int, rows: int):
    """Activations, their constants in the order of tender_quantize, and weights int64 [rows, runs, group_size]."""
    rng = np.random.default_rng(seed)
    sizes = np.exp(2.5 * rng.standard_normal(columns))
    x = ((rng.standard_normal((tokens, columns)) + rng.standard_normal(columns)) * sizes).astype(np.float32)
    middle, shifts, unit = calibrated(x.min(axis=0), x.max(axis=0), groups, width)
    order, runs = channel_order(shifts, group_size)
    weights = rng.integers(-127, 128, (rows, columns))
    constants = order, placed(middle, order), runs, np.array([unit], np.float32)
    return x, constants, weights, placed(weights, order).reshape(rows, -1, group_size)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 1000), st.integers(1, 5), st.integers(1, 90), st.integers(1, 16), st.integers(2, 8),
    st.sampled_from([1, 4, 16]),
)  # fmt: skip
def test_merging_by_one_bit_shifts_is_the_integer_product(seed, tokens, columns, groups, width, group_size):
    x, constants, _, in_runs = problem(seed, tokens, columns, groups, width, group_size, 3)
    form = TenderFormat(width, group_size)
    codes, flags, units = tender_quantize(x, *constants, form)
    order, middle, runs, unit = constants
    assert np.abs(codes).max() <= form.limit and not codes.reshape(tokens, -1)[:, order < 0].any()
    sums = shift_accumulate(codes, runs, in_runs)
    plain = (codes.astype(np.int64) << flags[..., None].astype(np.int64)).reshape(tokens, -1)
    np.testing.assert_array_equal(sums, plain @ in_runs.reshape(3, -1).T)
    layout = IntegerLayout(8, order.size, 3, group_size)
    np.testing.assert_array_equal(
        sums, sdr_sums(layout, codes, flags, in_runs, np.zeros((1, -(-runs.size // 2)), np.uint8))
    )
    # What it stands for: half a step of each channel's own group away at most, half a step of float32 more.
    near = plain * units + middle
    step = np.repeat(unit[0] * 2.0 ** runs.astype(np.float64), group_size)
    far = np.abs(near[:, order >= 0] - x[:, order[order >= 0]])
    assert (far <= 0.5001 * step[order >= 0] + 1e-6 * np.abs(x).max()).all()


def test_the_accumulator_takes_groups_from_the_largest_down():
    with pytest.raises(ValueError, match="largest shift down"):
        shift_accumulate(np.zeros((1, 2, 1)), np.array([0, 1]), np.zeros((1, 2, 1)))


def test_wrong_constants_are_refused():
    _, constants, _, _ = problem(0, 2, 20, 4, 4, 16, 1)
    order, middle, shifts, unit = constants
    form = TenderFormat(4, 16)
    form.check(20, *constants)
    wrong = {
        "names channels beyond": (np.where(order == order.max(), 20, order).astype(np.int32), middle, shifts, unit),
        "beyond the 20": (np.where(order < 0, -2, order).astype(np.int32), middle, shifts, unit),
        "order is": (order[:-1], middle, shifts, unit),
        "order is int64": (order.astype(np.int64), middle, shifts, unit),
        "finite": (order, np.full_like(middle, np.nan), shifts, unit),
        "shifts must be uint8": (order, middle, shifts.astype(np.int8), unit),
        "shifts must be below": (order, middle, shifts + np.uint8(16), unit),
        "its unit": (order, middle, shifts, np.zeros(1, np.float32)),
    }
    for message, given_ in wrong.items():
        with pytest.raises(ValueError, match=message):
            form.check(20, *given_)
    for attributes in ({"width": 1, "group_size": 16}, {"width": 9, "group_size": 16}, {"width": 4, "group_size": 0}):
        with pytest.raises(ValueError, match="must be"):
            TenderFormat.of(attributes)
    with pytest.raises(TypeError):
        TenderFormat.of({"width": 4.0, "group_size": 16})
