"""A linear layer with uniform weights of learnable clipping, on smoothed inputs that are integers for each token.

Gradients pass every rounding unchanged (straight-through, arXiv 1308.3432). Clipping and smoothing as in OmniQuant
(arXiv 2308.13137) and ABQ-LLM (arXiv 2408.08554); smoothing is a factor of each channel that multiplies a column of the
weights and divides what it reads. Scales are rounded when they are stored, which changes them by 2^-11 at most.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from toolchain.calibrate.blocks import get_weight
from toolchain.numerics.products import linear, precision_of
from toolchain.tune.trainable.scale import through

_MOST, _RATIO, _TRIED = 0.98, 0.93, 30  # of the clippings that are tried first: 0.98 down to 0.12


@dataclass(frozen=True)
class Widths:
    """What weights and activations are rounded to."""

    lowest: int  # levels of the weights
    highest: int
    activation_bits: int  # 0: floating point


def clipped(weight: torch.Tensor, share: torch.Tensor, widths: Widths) -> torch.Tensor:
    """Weights [N, K] rounded with scales that are signed shares [N, 1] of each row's largest magnitude."""
    scale = share * (weight.abs().amax(dim=1, keepdim=True) / -widths.lowest)
    scaled = (weight / torch.where(scale == 0.0, 1.0, scale)).clamp(widths.lowest, widths.highest)
    return through(scaled, scaled.detach().round()) * scale


def whole(x: torch.Tensor, bits: int) -> torch.Tensor:
    """x [..., K] as integers of `bits`, a unit for each token: its largest magnitude is the largest integer.

    As export/contract/operators/integers.py has them with units for each token and nothing razored. 0 bits: as it is.
    The unit has its gradient, by which smoothing learns what large channels cost the others.
    """
    if not bits:
        return x
    unit = x.abs().amax(dim=-1, keepdim=True) / ((1 << (bits - 1)) - 1)
    scaled = x / torch.where(unit == 0.0, 1.0, unit)
    return through(scaled, scaled.detach().round()) * unit


@torch.no_grad()
def best_shares(weight: torch.Tensor, energy: torch.Tensor, widths: Widths) -> torch.Tensor:
    """The signed share [N, 1] of a grid that leaves the least error of each row, columns weighted by energy [K]."""
    best = torch.full_like(weight[:, :1], torch.inf)
    found = torch.full_like(best, _MOST)
    sides = (1.0,) if widths.highest == -widths.lowest else (1.0, -1.0)
    for share in (side * _MOST * _RATIO**i for i in range(_TRIED) for side in sides):
        rounded = clipped(weight, torch.full_like(best, share), widths)
        error = ((weight - rounded).square() * energy).sum(dim=1, keepdim=True)
        found = torch.where(error < best, share, found)
        best = torch.minimum(best, error)
    return found


class Smoothing(nn.Module):
    """Factors of some channels, trained as their logarithms; all that read the channels share it."""

    def __init__(self, logs: torch.Tensor, columns: torch.Tensor | None) -> None:
        """logs float32 [channels]; columns int64 [K]: the channel of each column, None: each its own."""
        super().__init__()
        self.logs = nn.Parameter(logs)
        self.columns: torch.Tensor | None
        self.register_buffer("columns", columns)

    def factors(self) -> torch.Tensor:
        """What each column of a reader is multiplied by, float32 [K]."""
        factors = self.logs.exp()
        return factors if self.columns is None else factors[self.columns]


class ClippedLinear(nn.Module):
    """Stands in for one linear layer (or GPT-2's Conv1D) of a Hugging Face model while its block is calibrated."""

    def __init__(
        self, module: nn.Module, energy: torch.Tensor, widths: Widths, smoothing: Smoothing | None = None
    ) -> None:
        """energy float32 [K]: mean squares of what it reads."""
        super().__init__()
        self.weight: torch.Tensor
        self.register_buffer("weight", torch.from_numpy(get_weight(module)).to(energy.device))
        self.bias = module.bias if isinstance(module.bias, torch.Tensor) else None
        self.precision, self.widths = precision_of(module), widths
        self._smoothing = [] if smoothing is None else [smoothing]  # a list: it is no part of this module
        columns = self.factors().detach()
        shares = best_shares(self.weight * columns, energy / columns.square(), widths)
        self.sign: torch.Tensor
        self.register_buffer("sign", shares.sign())
        self.clipping = nn.Parameter(torch.logit(shares.abs()))
        self.current: torch.Tensor | None = None  # stands for rounded() during a step

    def factors(self) -> torch.Tensor:
        """float32 [K], or ones [1] without smoothing."""
        return self._smoothing[0].factors() if self._smoothing else self.weight.new_ones(1)

    def shares(self) -> torch.Tensor:
        """Signed clipping [N, 1]."""
        return self.sign * torch.sigmoid(self.clipping)

    def rounded(self) -> torch.Tensor:
        """The smoothed weight as it would be stored, float32 [N, K], with gradients to clipping and smoothing."""
        return clipped(self.weight * self.factors(), self.shares(), self.widths)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.rounded() if self.current is None else self.current
        return linear(whole(x / self.factors(), self.widths.activation_bits), weight, self.bias, self.precision)
