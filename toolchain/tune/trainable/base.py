"""What trainable layers have in common: the module they stand for, its bias, and the weight of a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from export.artefacts.stored_matrix import Outliers, StoredMatrix
from toolchain.numerics.products import BFLOAT16, linear, precision_of
from toolchain.tune.trainable.scale import TrainableScale


class TrainableMatrix(nn.Module):
    """Stands in for one linear layer (or GPT-2's Conv1D) of a Hugging Face model."""

    def __init__(self, module: nn.Module, stored: StoredMatrix) -> None:
        super().__init__()
        layout: Any = stored.layout
        self.stored, self.layout = stored, layout
        self.current: torch.Tensor | None = None  # stands for weight_matrix() during a step (microbatch.py)
        self._rounded: torch.Tensor | None = None  # the same in bfloat16
        self._holds = False
        self._held: torch.Tensor | None = None  # codes that stay as they are (hold())
        self._watched: Callable[[torch.Tensor], torch.Tensor] = _as_it_is
        bias = module.bias
        self.bias = nn.Parameter(bias.detach().clone()) if isinstance(bias, torch.Tensor) else None
        self.transposed = isinstance(module, Conv1D)
        self.precision = precision_of(module)
        self.scale = TrainableScale(stored["scale"], stored.coded.get("scale"), layout.N, layout.rows_per_scale)
        self.apart: torch.Tensor | None
        self.register_buffer("apart", sparse_weight(stored.outliers, layout.N, layout.K))

    @property
    def weight_bits(self) -> float:
        """Bits of a code for every weight."""
        return float(self.layout.weight_bits)

    def weight_matrix(self) -> torch.Tensor:
        """The stored weight [N, K] with gradients to every trainable part."""
        raise NotImplementedError

    def use(self, weight: torch.Tensor | None, watched: Callable[[torch.Tensor], torch.Tensor] | None = None) -> None:
        """Compute with this weight [N, K] until use(None): a step's windows share what weight_matrix() gave.

        watched(weight) gives the same weight, and gets its gradient. Where products are of bfloat16, only the rounded
        weight is kept, and `current` has its shape alone.
        """
        self._rounded, self._watched = None, watched or _as_it_is
        if weight is not None and self.precision == BFLOAT16:
            self._rounded, weight = weight.bfloat16(), weight.new_zeros(1).expand(weight.shape)
        self.current = None if weight is None else weight.requires_grad_()

    def hold(self, held: bool) -> None:
        """Whether codes that take long to find stay as they are found next, until hold(False)."""
        self._holds, self._held = held, None

    def codes_held(self, find: Callable[[], torch.Tensor]) -> torch.Tensor:
        """The codes that are held, or what find() gives."""
        codes = find() if self._held is None else self._held
        self._held = codes if self._holds else None
        return codes

    def weigh(self, rows: torch.Tensor) -> None:
        """What errors of rows weigh from now on, float32 [N] above zero, where codes are found for several together."""

    def turn(self, step: int) -> None:
        """Which of several weights weight_matrix() is in this step, where a matrix stands for several."""

    def to_stored(self, losses: dict[str, float]) -> StoredMatrix:
        """The trained layer in stored form; its dequantized weights are weight_matrix() to float32 rounding.

        The layer has to be on the processor.
        """
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight_matrix() if self.current is None else self._watched(self.current)
        return linear(x, weight, self.bias, self.precision, self._rounded)


def _as_it_is(weight: torch.Tensor) -> torch.Tensor:
    return weight


def sparse_weight(outliers: Outliers | None, rows: int, columns: int) -> torch.Tensor | None:
    """Weights stored apart as a constant float32 [rows, columns]; None where there are none."""
    return None if outliers is None else torch.from_numpy(outliers.dense(rows, columns))
