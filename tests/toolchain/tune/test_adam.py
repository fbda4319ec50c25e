"""Adam with rounded moments: torch's own for small parameters, and close to it for large ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from toolchain.system.device import CPU
from toolchain.tune.adam import Trained, update


def _both(rows: int, columns: int, steps: int = 12) -> tuple[torch.Tensor, torch.Tensor, Trained]:
    """A parameter after some steps on a bowl with noise: by update() and by torch.optim.Adam."""
    generator = torch.Generator().manual_seed(3)
    start, bowl = (torch.randn(rows, columns, generator=generator) for _ in range(2))
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    own = Trained.of("it", ours, 0.02)
    assert own.rate == pytest.approx(0.02 * float(start.square().mean().sqrt()))
    own.rate = 0.02
    adam = torch.optim.Adam([theirs], lr=0.02, betas=(0.9, 0.95))
    for step in range(steps):
        noise = torch.randn(rows, columns, generator=generator)
        factor = 1.0 - step / steps
        for parameter in (ours, theirs):
            parameter.grad = parameter.detach() * bowl.abs() + 0.3 * noise
        adam.param_groups[0]["lr"] = 0.02 * factor
        adam.step()
        update([own], step + 1, factor, CPU)
        assert ours.grad is None
    return ours.detach(), theirs.detach(), own


def test_small_parameters_are_those_of_torch():
    ours, theirs, own = _both(7, 5)
    assert own.mean.dtype == own.square.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)  # float32, in another order


def test_large_parameters_move_as_torchs_to_the_rounding_of_their_moments():
    ours, theirs, own = _both(256, 257)
    assert own.mean.dtype == own.square.dtype == torch.bfloat16
    # a moment of bfloat16 is off by 1/256 at most, in each of 12 steps of at most 0.02
    assert float((ours - theirs).abs().max()) < 0.02 * 12 / 64
    assert float((ours - theirs).square().mean().sqrt()) < 1e-3


def test_a_parameter_without_a_gradient_stays():
    parameter = nn.Parameter(torch.ones(3))
    update([Trained.of("it", parameter, 1.0)], 1, 1.0, CPU)
    assert torch.equal(parameter.detach(), torch.ones(3))


@pytest.mark.parametrize("threads", ["1", "3"])
def test_results_do_not_depend_on_threads(threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    ours, _, _ = _both(256, 257, 3)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    again, _, _ = _both(256, 257, 3)
    np.testing.assert_array_equal(ours.numpy(), again.numpy())
