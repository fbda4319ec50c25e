"""Hessians of a block's experts, each of the tokens that the router sends to it.

A few calibration tokens say little about a matrix of many columns: experts that fewer reach take the Hessian of their
layer, pooled over all experts. Not all Hessians of a block are in memory at once, which would be more than its weights.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import nn

from export.graph.spec import BlockNames
from toolchain.calibrate.blocks import BlockRunner, get_weight
from toolchain.calibrate.moments import gram
from toolchain.numerics.experts import Experts
from toolchain.system.device import each, summed

FEW = 0.25  # tokens for each column of a matrix; experts with fewer have no Hessian of their own


def expert_groups(names: BlockNames, block: nn.Module, hessians: int = 1) -> Iterator[tuple[str, ...]]:
    """The experts' linear layers, expert after expert, as many together as have Hessians no larger than the block.

    hessians: how many a layer has.
    """
    room = sum(parameter.nbytes for parameter in block.parameters())
    group: list[str] = []
    taken = 0
    for own in names.by_expert():
        size = sum(8 * hessians * get_weight(block.get_submodule(name)).shape[1] ** 2 for name in own)
        if group and taken + size > room:
            yield tuple(group)
            group, taken = [], 0
        group += own
        taken += size
    if group:
        yield tuple(group)


def expert_tokens(runner: BlockRunner, block: nn.Module, hidden: torch.Tensor) -> np.ndarray:
    """How many tokens of all sequences [sequences, length, hidden] each expert of a block has: int64 [count]."""
    experts = _experts(block)
    counts: list[np.ndarray] = []

    def note(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        counts.append(np.bincount(inputs[1].reshape(-1).cpu().numpy(), minlength=len(experts)))

    handle = experts.register_forward_pre_hook(note)
    try:
        runner.run(block, hidden)
    finally:
        handle.remove()
    return np.sum(counts, axis=0)


def pooled_hessians(
    runner: BlockRunner, names: BlockNames, block: nn.Module, hidden: torch.Tensor
) -> dict[str, np.ndarray]:
    """By name with {expert}: twice the mean of x x^T over what all experts of a block are given, float64 [K, K]."""
    sums = dict[str, torch.Tensor]()
    running = threading.local()

    def hook(template: str) -> Callable[..., None]:
        def add(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            term, found = gram(inputs[0], None), running.found
            found[template] = found[template].add_(term) if template in found else term

        return add

    def one(i: int) -> dict[str, torch.Tensor]:
        running.found = {}
        runner.run(block, hidden[i : i + 1])
        found: dict[str, torch.Tensor] = running.found
        return found

    handles = [
        block.get_submodule(name).register_forward_pre_hook(hook(template))
        for own in names.by_expert()
        for name, template in zip(own, names.of_experts())
    ]
    try:
        for found in each(one, range(len(hidden)), runner.device):
            for template, term in found.items():  # float64 across sequences, in their order
                sums[template] = summed(sums.get(template), term)
    finally:
        for handle in handles:
            handle.remove()
    assert names.experts is not None
    tokens = hidden.shape[0] * hidden.shape[1] * names.experts.per_token
    return {template: total.mul_(2.0 / tokens).cpu().numpy() for template, total in sums.items()}


def too_few(names: BlockNames, block: nn.Module, tokens: np.ndarray) -> Mapping[str, str]:
    """Of experts that too few tokens reach: their linear layers, and each one's name with {expert}."""
    found = {}
    for number, own in enumerate(names.by_expert()):
        for name, template in zip(own, names.of_experts()):
            if tokens[number] < FEW * get_weight(block.get_submodule(name)).shape[1]:
                found[name] = template
    return found


def expert_number(names: BlockNames, name: str) -> int:
    """Which expert a linear layer of a block belongs to."""
    return next(number for number, own in enumerate(names.by_expert()) if name in own)


def _experts(block: nn.Module) -> Experts:
    return next(module for module in block.modules() if isinstance(module, Experts))
