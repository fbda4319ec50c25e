"""Adam (arXiv 1412.6980) with the moments of matrices in bfloat16: half the memory of training beside the weights.

A moment is replaced by a tenth or a twentieth in every step, where bfloat16 rounds by a five-hundredth at most.
torch.optim's keep moments in the type of their parameters.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from toolchain.system.device import each

_BETAS, _EPSILON = (0.9, 0.95), 1e-8
_LARGE = 1 << 16  # parameters from which on moments are rounded


@dataclass
class Trained:
    """A parameter, how fast it learns and what is known of its gradients."""

    name: str
    parameter: nn.Parameter
    rate: float  # of a whole step
    mean: torch.Tensor
    square: torch.Tensor

    @staticmethod
    def of(name: str, parameter: nn.Parameter, rate: float) -> Trained:
        """rate: relative to the parameter's root mean square."""
        kind = torch.bfloat16 if parameter.numel() >= _LARGE else parameter.dtype
        mean, square = (torch.zeros_like(parameter, dtype=kind, requires_grad=False) for _ in range(2))
        size = float(parameter.detach().square().mean().sqrt().clamp_min(1e-8))
        return Trained(name, parameter, rate * size, mean, square)


def update(trained: Iterable[Trained], step: int, factor: float, device: torch.device) -> None:
    """Step number `step`, from 1 on, by .grad of every parameter, which is dropped; factor: of all learning rates."""
    first, second = (1.0 - beta**step for beta in _BETAS)

    @torch.no_grad()
    def one(own: Trained) -> None:
        gradient, own.parameter.grad = own.parameter.grad, None
        if gradient is None:
            return
        mean = own.mean.float().lerp_(gradient, 1.0 - _BETAS[0])
        square = own.square.float().mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1.0 - _BETAS[1])
        own.mean.copy_(mean)
        own.square.copy_(square)
        size = (square / second).sqrt_().add_(_EPSILON)
        own.parameter.addcdiv_(mean, size, value=-own.rate * factor / first)

    for _ in each(one, trained, device):
        pass
