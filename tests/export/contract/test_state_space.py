"""SelectiveStateSpace: the reference against transformers' Mamba-2, the body in onnxruntime and onnx.reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.models.mamba2 import modeling_mamba2 as theirs

from export.contract.operators.state_space import (
    LARGEST,
    SELECTIVE_STATE_SPACE,
    StateSpaceLayout,
    selective_state_space,
    state_space_function,
)
from tests.export.contract.test_delta_rule import run_everywhere

NAMES = ("X", "step", "B", "C", "rate", "bias", "skip", "past")


def inputs_of(batch: int, tokens: int, groups: int, heads: int, size: int, dim: int) -> list[np.ndarray]:
    rng = np.random.default_rng(tokens + 10 * heads)
    widths = (heads * dim, heads, groups * size, groups * size)
    rows = [rng.standard_normal((batch, tokens, width)).astype(np.float32) for width in widths]
    rows[1] *= 4
    rate, bias, skip = -np.exp(rng.standard_normal(heads)), *rng.standard_normal((2, heads))
    past = rng.standard_normal((batch, heads, size, dim))
    return [*rows, *(array.astype(np.float32) for array in (rate, bias, skip, past))]


@pytest.mark.parametrize("tokens", [1, 2, 7, 70])
@pytest.mark.parametrize("batch, groups, heads, size, dim", [(1, 2, 2, 8, 8), (2, 1, 3, 4, 6), (2, 2, 4, 16, 1)])
def test_the_state_space_is_transformers(batch, groups, heads, size, dim, tokens):
    inputs = inputs_of(batch, tokens, groups, heads, size, dim)
    attributes = {"heads": heads, "groups": groups, "least": 0.2, "most": 1.5}
    layout = StateSpaceLayout.of(attributes, groups * size, heads * dim)
    found = selective_state_space(*inputs, layout)
    x, step, b, c, rate, bias, skip, past = map(torch.from_numpy, inputs)
    own, written, read = (r.reshape(batch, tokens, -1, n) for r, n in ((x, dim), (b, size), (c, size)))
    turned = past.transpose(2, 3).contiguous()  # theirs has the columns of a head before those of B
    out, state = theirs.mamba2_chunk_scan(
        own, step, rate, written, read, chunk_size=16, D=skip, dt_bias=bias, dt_softplus=True, initial_states=turned,
        return_final_states=True, dt_limit=(0.2, 1.5),
    )  # fmt: skip
    np.testing.assert_allclose(found[0], out.reshape(batch, tokens, -1).numpy(), atol=1e-4)
    np.testing.assert_allclose(found[1], state.transpose(2, 3).numpy(), atol=5e-5)
    body = state_space_function()
    for outputs in run_everywhere(SELECTIVE_STATE_SPACE, body, NAMES, inputs, ["Y", "present"], attributes):
        for one, other in zip(outputs, found, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5, rtol=1e-5)


def test_one_token_is_transformers_step():
    inputs = inputs_of(2, 1, 2, 4, 8, 6)
    found = selective_state_space(*inputs, StateSpaceLayout(4, 2, 8, 6, 0.0, LARGEST))
    x, step, b, c, rate, bias, skip, past = map(torch.from_numpy, inputs)
    state = past.transpose(2, 3).contiguous()
    wide = [number.reshape(-1, 4, 1).expand(-1, -1, 6) for number in (step, bias, skip)]
    out = theirs.mamba2_selective_state_update(
        state, x.reshape(2, 4, 6), wide[0], rate[:, None, None].expand(-1, 6, 8), b.reshape(2, 2, 8),
        c.reshape(2, 2, 8), wide[2][0], dt_bias=wide[1][0], dt_softplus=True,
    )  # fmt: skip
    np.testing.assert_allclose(found[0], out.reshape(2, 1, -1).numpy(), atol=1e-5)
    np.testing.assert_allclose(found[1], state.transpose(2, 3).numpy(), atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [{"least": 2.0}, {"most": float("nan")}, {"most": float("inf")}, {"groups": 3}, {"groups": 0}, {"heads": 4.0},
     {"heads": 64}, {"heads": 2}, {"heads": True}],
)  # fmt: skip
def test_attributes_that_do_not_fit(change):
    with pytest.raises((TypeError, ValueError)):
        StateSpaceLayout.of({"heads": 8, "groups": 4, "least": 0.0, "most": 1.0, **change}, 16, 24)


def test_shapes_that_do_not_fit():
    inputs = inputs_of(1, 2, 1, 2, 4, 4)
    layout = StateSpaceLayout(2, 1, 4, 4, 0.0, LARGEST)
    for place in range(len(inputs)):
        cut = inputs[place][:, :1] if place == 7 else inputs[place][..., :1]
        with pytest.raises(ValueError):
            selective_state_space(*inputs[:place], cut, *inputs[place + 1 :], layout)
