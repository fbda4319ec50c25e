"""Gradients of a quantized model's loss, a few windows a thread, summed in order: no thread count changes a bit.

The stored weights of all trainable layers are made once a step. Each piece of windows then runs forward and backward
alone, down to those weights; the sum of their gradients goes on to latent weights, codebooks and scales.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from toolchain.system.device import each
from toolchain.system.threads import pieces
from toolchain.tune.trainable.base import TrainableMatrix


def trainable_parameters(student: nn.Module) -> dict[str, nn.Parameter]:
    """Everything inside trainable layers, and all vectors (norms, biases); the rest of the model is frozen."""
    chosen: dict[str, nn.Parameter] = {}
    for parameter in student.parameters():
        parameter.requires_grad_(False)
    for name, module in student.named_modules():
        if isinstance(module, TrainableMatrix):
            chosen |= {f"{name}.{n}": p for n, p in module.named_parameters()}
    chosen |= {n: p for n, p in student.named_parameters() if p.ndim == 1}
    for parameter in chosen.values():
        parameter.requires_grad_(True)
    return chosen


def code_widths(student: nn.Module) -> dict[str, float]:
    """Bits of a code for every weight, by the names of trainable_parameters; nothing for norms and biases."""
    found: dict[str, float] = {}
    for name, module in student.named_modules():
        if isinstance(module, TrainableMatrix):
            bits = module.stored.layout.weight_bits
            found |= {f"{name}.{n}": bits for n, _ in module.named_parameters() if n != "bias"}
    return found


def accumulate(student: nn.Module, loss_of: Callable[[slice], torch.Tensor], windows: int, together: int = 1) -> float:
    """Set .grad of every trainable parameter to the mean gradient over the windows; the mean loss.

    loss_of(part) runs the student on a slice of at most `together` windows and returns their mean loss, a scalar; it is
    called in threads of the processor.
    """
    layers = [module for module in student.modules() if isinstance(module, TrainableMatrix)]
    device = next(student.parameters()).device
    made = list(each(_weight_of, layers, device))
    inner = {id(p) for layer in layers for n, p in layer.named_parameters() if n != "bias"}
    outer = [p for p in student.parameters() if p.requires_grad and id(p) not in inner]
    leaves = [weight.detach().requires_grad_() for weight in made]
    for layer, leaf in zip(layers, leaves):
        layer.use(leaf)

    def one(part: slice) -> tuple[torch.Tensor, tuple[torch.Tensor | None, ...]]:
        loss = loss_of(part) * ((part.stop - part.start) / windows)
        return loss.detach(), torch.autograd.grad(loss, [*leaves, *outer], allow_unused=True)

    total, sums = 0.0, [torch.zeros_like(p) for p in (*leaves, *outer)]
    try:
        for loss, gradients in each(one, pieces(windows, together), device):
            total += float(loss)
            for sum_, gradient in zip(sums, gradients):
                if gradient is not None:
                    sum_ += gradient
    finally:
        for layer in layers:
            layer.use(None)
    for parameter, gradient in zip(outer, sums[len(leaves) :]):
        parameter.grad = gradient

    def through(i: int) -> None:
        made[i].backward(sums[i])

    for _ in each(through, range(len(layers)), device):
        pass
    return total


def _weight_of(layer: nn.Module) -> torch.Tensor:
    with torch.enable_grad():
        weight = layer.weight_matrix()  # type: ignore[operator]
    assert isinstance(weight, torch.Tensor)
    return weight
