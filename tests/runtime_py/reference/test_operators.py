"""Convolutions and slices of the interpreter against torch and numpy, and what it refuses of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from export.contract.errors import InputError
from runtime_py.reference.operators import run_operator


@settings(max_examples=50)
@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 5), st.integers(0, 7), st.booleans())
def test_a_convolution_of_each_channel(batch, channels, width, more, biased):
    rng = np.random.default_rng(width)
    value = rng.standard_normal((batch, channels, width + more)).astype(np.float32)
    weights = rng.standard_normal((channels, 1, width)).astype(np.float32)
    inputs = [value, weights, *([rng.standard_normal(channels).astype(np.float32)] if biased else [])]
    (found,) = run_operator("Conv", "c", {"group": channels, "kernel_shape": [width]}, inputs)
    expected = torch.conv1d(*(torch.from_numpy(a) for a in inputs), groups=channels).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


VALUE, WEIGHTS = np.zeros((1, 4, 6), np.float32), np.zeros((4, 1, 3), np.float32)


@pytest.mark.parametrize(
    ("attributes", "inputs"),
    [
        ({"group": 1}, [VALUE, WEIGHTS]),
        ({"group": 4, "pads": [1, 1]}, [VALUE, WEIGHTS]),
        ({"group": 4, "strides": [2]}, [VALUE, WEIGHTS]),
        ({"group": 4, "dilations": [2]}, [VALUE, WEIGHTS]),
        ({"group": 4, "auto_pad": "SAME_UPPER"}, [VALUE, WEIGHTS]),
        ({"group": 4}, [VALUE, np.zeros((4, 2, 3), np.float32)]),
        ({"group": 4}, [VALUE, np.zeros((4, 1, 7), np.float32)]),
        ({"group": 4}, [VALUE, WEIGHTS, np.zeros(3, np.float32)]),
        ({"group": 4}, [VALUE[0], WEIGHTS]),
        ({"group": 4}, [VALUE, WEIGHTS[0]]),
        ({"group": 1 << 20}, [np.broadcast_to(np.float32(0), (1, 1 << 20, 1 << 8)), np.zeros((1 << 20, 1, 8))]),
    ],
)
def test_other_convolutions_are_refused(attributes, inputs):
    with pytest.raises(InputError, match="Conv (does not fit its inputs|would make)"):
        run_operator("Conv", "c", attributes, inputs)


@pytest.mark.parametrize(("start", "end"), [(0, 2), (-3, 1 << 62), (1, -1), (5, 3), (-99, 99)])
def test_slices_are_those_of_numpy(start, end):
    value = np.arange(24).reshape(2, 3, 4)
    (found,) = run_operator("Slice", "s", {}, [value, np.array([start]), np.array([end]), np.array([2])])
    np.testing.assert_array_equal(found, value[:, :, start:end])
    with pytest.raises(InputError, match="only whole pieces"):
        run_operator("Slice", "s", {}, [value, *(np.array([n]) for n in (start, end, 2, -1))])


@pytest.mark.parametrize("axes", [[3], [0, 1], [-4]])
def test_slices_along_axes_that_are_not_there(axes):
    with pytest.raises(InputError, match="does not fit"):
        run_operator("Slice", "s", {}, [np.zeros((2, 3, 4)), np.array([0]), np.array([1]), np.array(axes)])
