"""Matrix products of calibration and tuning: in float32, or with operands rounded to bfloat16 where that is faster.

Processors with AVX-512 BF16, AMX or ARM's BF16 multiply bfloat16 at two to eight times the rate of float32. Sums and
everything but the products of linear layers stay in float32. SmolLM2-135M computed so differs from itself in float32
by a KL of 0.0006 nats a token (WikiText-2), a hundredth of what 4-bit codes cost. Hessians are in float32 all the
same: tokens of massive activation own their largest entries, whose rounding would hide the smallest directions.
"""

from __future__ import annotations

from collections import Counter
from functools import cache

import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

FLOAT32, BFLOAT16 = "float32", "bfloat16"
_PROCESSOR = torch.device("cpu")
_FEATURES = ("avx512bf16", "amx-bf16", "bf16")  # LLVM's names; the last is ARM's
_LEAST_WIDTH = 256  # of the model; narrower products gain nothing


@cache
def processor_multiplies_bfloat16() -> bool:
    """Whether this machine has instructions for products of bfloat16."""
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    return any(features.get(name) for name in _FEATURES)


def chosen_precision(asked: str, width: int, device: torch.device = _PROCESSOR) -> str:
    """FLOAT32 or BFLOAT16 for what was asked ("auto": what is faster here) and a model of this hidden size."""
    if asked != "auto":
        return asked
    if device.type != "cpu":  # what bfloat16 gains there was never measured
        return FLOAT32
    return BFLOAT16 if processor_multiplies_bfloat16() and width >= _LEAST_WIDTH else FLOAT32


class _Product(torch.autograd.Function):
    """x [..., K] times weight [N, K] transposed; operands rounded to bfloat16, the gradients' alike.

    rounded: the weight in bfloat16. The gradient goes to `weight`, whose values are not read.
    """

    @staticmethod
    def forward(ctx, x, weight, rounded):  # type: ignore[no-untyped-def]
        x = x.bfloat16()
        ctx.save_for_backward(x, rounded)
        return (x @ rounded.T).float()

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        x, weight = ctx.saved_tensors
        gradient = gradient.bfloat16()
        of_x = (gradient @ weight).float() if ctx.needs_input_grad[0] else None
        rows = gradient.flatten(0, -2)
        of_weight = (rows.T @ x.flatten(0, -2)).float() if ctx.needs_input_grad[1] else None
        return of_x, of_weight, None


def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, precision: str,
    rounded: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """x [..., K] times weight [N, K] transposed, plus bias; float32. rounded: the weight in bfloat16 if known."""
    if precision == FLOAT32:
        return functional.linear(x, weight, bias)
    out: torch.Tensor = _Product.apply(x, weight, weight.bfloat16() if rounded is None else rounded)
    return out if bias is None else out + bias


class _Rounded:
    """Keeps a weight in bfloat16 for as long as the weight is the same."""

    # the weight, where its values lie and their version, and the weight in bfloat16
    _kept: tuple[torch.Tensor, int, int, torch.Tensor] | None = None

    def rounded(self, weight: torch.Tensor) -> torch.Tensor:
        place, version, kept = weight.data_ptr(), weight._version, self._kept
        if kept is None or kept[0] is not weight or kept[1:3] != (place, version):
            self._kept = kept = (weight, place, version, weight.detach().bfloat16())
        return kept[3]


class RoundedLinear(_Rounded, nn.Linear):
    """A linear layer that multiplies bfloat16."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight, self.bias, BFLOAT16, self.rounded(self.weight))


class RoundedConv1D(_Rounded, Conv1D):
    """GPT-2's form of it, whose weight is stored transposed."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight.T, self.bias, BFLOAT16, self.rounded(self.weight).T)


def with_precision(model: nn.Module, precision: str) -> nn.Module:
    """The model, its linear layers made to compute in this precision, in place."""
    if precision == BFLOAT16:
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = RoundedLinear
            elif type(module) is Conv1D:
                module.__class__ = RoundedConv1D
    return model


def precision_of(module: nn.Module) -> str:
    """What with_precision made of a linear layer."""
    return BFLOAT16 if isinstance(module, RoundedLinear | RoundedConv1D) else FLOAT32


def keep_rounded_only(model: nn.Module) -> None:
    """Drop the float32 weights of layers that multiply bfloat16, in a model that is run but not trained.

    Weights that other modules have as well, as a tied embedding, stay.
    """
    owners = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    for module in model.modules():
        if isinstance(module, RoundedLinear | RoundedConv1D) and owners[id(module.weight)] == 1:
            module.weight.data = module.weight.data.bfloat16()
