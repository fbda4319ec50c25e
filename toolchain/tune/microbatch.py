"""Gradients of a quantized model's loss, a few windows a thread, summed in order: no thread count changes a bit.

The stored weights of all trainable layers are made once a step. Each piece of windows then runs forward and backward
alone, down to those weights, and adds its gradient of each to one sum as soon as it has it and its turn has come; the
sums go on to latent weights, codebooks and scales. So one array is as large as the model, not one for each piece.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn
from torch.autograd.graph import get_gradient_edge

from toolchain.numerics.products import BFLOAT16
from toolchain.system.device import each
from toolchain.system.memory import trim
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
            found |= {f"{name}.{n}": module.weight_bits for n, _ in module.named_parameters() if n != "bias"}
    return found


def take_turns(student: nn.Module, step: int) -> None:
    """What stands for several weights, such as nested codes, trains another of them in every step."""
    for module in student.modules():
        if isinstance(module, TrainableMatrix):
            module.turn(step)


class _Sums:
    """Gradients of a step by layer: [N, K] each, of the pieces of windows in their order.

    In float32, or in bfloat16 where products are, and so each piece's gradient is.
    """

    def __init__(self, layers: Sequence[TrainableMatrix]) -> None:
        self.sums: list[torch.Tensor | None] = [None] * len(layers)
        self._types = [torch.bfloat16 if layer.precision == BFLOAT16 else torch.float32 for layer in layers]
        self._next, self._change = [0] * len(layers), threading.Condition()  # whose turn it is, at each
        self._piece = threading.local()
        self._error: BaseException | None = None  # of any piece: the others end with it, too

    def run(self, piece: int, function: Callable[[], torch.Tensor]) -> torch.Tensor:
        """function() as piece number `piece` of this thread; turns that it did not need are passed on."""
        self._piece.number = piece
        try:
            found = function()
            for layer in range(len(self.sums)):
                self._take_turn(layer, piece)
        except BaseException as error:
            with self._change:
                self._error = self._error or error
                self._change.notify_all()
            raise
        return found

    def watched(self, layer: int, weight: torch.Tensor) -> torch.Tensor:
        """The weight as it is; its gradient comes here."""
        found: torch.Tensor = _Watched.apply(weight, partial(self._take_turn, layer, self._piece.number))
        return found

    def _take_turn(self, layer: int, piece: int, gradient: torch.Tensor | None = None) -> None:
        """Add a piece's gradient, or nothing, when all pieces before it have; raises the error of one that failed."""
        with self._change:
            self._change.wait_for(lambda: self._next[layer] >= piece or self._error is not None)
        if self._error is not None:
            raise self._error
        if gradient is not None:
            before = self.sums[layer]
            self.sums[layer] = gradient.to(self._types[layer], copy=True) if before is None else before.add_(gradient)
        with self._change:
            self._next[layer] = max(self._next[layer], piece + 1)
            self._change.notify_all()


class _Watched(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight, receive):  # type: ignore[no-untyped-def]
        ctx.receive = receive
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        ctx.receive(gradient)
        return None, None


def accumulate(student: nn.Module, loss_of: Callable[[slice], torch.Tensor], windows: int, together: int = 1) -> float:
    """Set .grad of every trainable parameter to the mean gradient over the windows; the mean loss.

    loss_of(part) runs the student on a slice of at most `together` windows and returns their mean loss, a scalar; it is
    called in threads of the processor.
    """
    layers = [module for module in student.modules() if isinstance(module, TrainableMatrix)]
    device = next(student.parameters()).device
    sums, edges = _Sums(layers), []
    for i, (layer, weight) in enumerate(zip(layers, each(_weight_of, layers, device))):
        edges.append(get_gradient_edge(weight))  # the values are not needed to pass a gradient through
        layer.use(weight.detach(), partial(sums.watched, i))
    trim()  # what the weights were made of, a layer in a thread
    leaves = [layer.current for layer in layers if layer.current is not None]
    inner = {id(p) for layer in layers for n, p in layer.named_parameters() if n != "bias"}
    outer = [p for p in student.parameters() if p.requires_grad and id(p) not in inner]
    of_outer = [torch.zeros_like(p) for p in outer]

    def one(numbered: tuple[int, slice]) -> tuple[torch.Tensor, tuple[torch.Tensor | None, ...]]:
        piece, part = numbered
        gradients: tuple[torch.Tensor | None, ...] = ()

        def passes() -> torch.Tensor:
            nonlocal gradients
            loss = loss_of(part) * ((part.stop - part.start) / windows)
            gradients = torch.autograd.grad(loss, [*outer, *leaves], allow_unused=True)[: len(outer)]
            return loss.detach()

        return sums.run(piece, passes), gradients

    total = 0.0
    try:
        for loss, gradients in each(one, enumerate(pieces(windows, together)), device):
            total += float(loss)
            for sum_, gradient in zip(of_outer, gradients):
                if gradient is not None:
                    sum_ += gradient
    finally:
        for layer in layers:
            layer.use(None)
    for parameter, sum_ in zip(outer, of_outer):
        parameter.grad = sum_

    def through(i: int) -> None:
        gradient, sums.sums[i] = sums.sums[i], None
        if gradient is not None:
            torch.autograd.backward([edges[i]], [gradient.float()])

    for _ in each(through, range(len(layers)), device):
        pass
    return total


def _weight_of(layer: nn.Module) -> torch.Tensor:
    with torch.enable_grad():
        weight = layer.weight_matrix()  # type: ignore[operator]
    assert isinstance(weight, torch.Tensor)
    return weight
