"""A linear layer of floats that is trained as it is, beside those of stored formats."""

from __future__ import annotations

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from toolchain.numerics.products import precision_of
from toolchain.tune.trainable.base import TrainableMatrix


class TrainablePlain(TrainableMatrix):
    """The weight of one linear layer, every number of it free."""

    def __init__(self, module: nn.Module) -> None:
        nn.Module.__init__(self)
        weight, bias = module.weight, module.bias
        assert isinstance(weight, torch.Tensor)
        self.transposed = isinstance(module, Conv1D)
        self.latent = nn.Parameter((weight.T if self.transposed else weight).detach().clone())
        self.bias = nn.Parameter(bias.detach().clone()) if isinstance(bias, torch.Tensor) else None
        self.precision = precision_of(module)
        self.use(None)

    @property
    def weight_bits(self) -> float:
        return 16.0

    def weight_matrix(self) -> torch.Tensor:
        """The weight [N, K]."""
        return self.latent.view_as(self.latent)
