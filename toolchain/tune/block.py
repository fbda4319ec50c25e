"""Tunes one quantized block on its own output error: codes, codebooks, scales, low-rank factors, norms and biases.

The target is what the block computes from the same inputs before it is quantized; inputs have passed through the blocks
that are quantized already, as in AQLM's fine-tuning (arXiv 2401.06118, section 3.4). Needs one block in memory several
times, so it works where end-to-end tuning (tuning.py) does not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from toolchain.system.device import each
from toolchain.tune.adam import Trained, update
from toolchain.tune.end_to_end import default_rate
from toolchain.tune.microbatch import accumulate, code_widths, take_turns, trainable_parameters

Forward = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class BlockTuneSettings:
    """How long and how fast to train a block."""

    steps: int
    rate: float  # of Adam, relative to the root mean square of each tensor; falls linearly to zero. 0: by width
    bits: int  # width of most layers, which norms and biases go by
    batch: int = 8  # sequences a step
    seed: int = 0


def tune_block(
    block: nn.Module, forward: Forward, inputs: torch.Tensor, targets: torch.Tensor, settings: BlockTuneSettings
) -> tuple[float, float]:
    """Train what is trainable in `block` so that forward(inputs[i:i+1]) comes close to targets[i:i+1].

    inputs and targets float32 [sequences, length, hidden]. Returns the mean squared error over all sequences before and
    after, relative to the mean square of the targets; where it would have risen, the block is as it was.
    """
    parameters = trainable_parameters(block)
    device = next(block.parameters()).device
    before = _error(forward, inputs, targets, device)
    kept = {name: p.detach().clone() for name, p in parameters.items()}
    trained, widths = list[Trained](), code_widths(block)
    for name, parameter in parameters.items():
        rate = settings.rate or default_rate(widths.get(name, settings.bits))
        trained.append(Trained.of(name, parameter, rate))
    size = max(float(targets.square().mean(dtype=torch.float64)), 1e-30)
    for step in range(settings.steps):
        factor = min(1.0, (step + 1) / 10) * (1.0 - step / settings.steps)
        count = min(settings.batch, len(inputs))
        chosen = np.sort(np.random.default_rng((settings.seed, step)).choice(len(inputs), size=count, replace=False))

        def loss_of(part: slice, chosen: np.ndarray = chosen) -> torch.Tensor:
            own = slice(int(chosen[part.start]), int(chosen[part.start]) + 1)
            found = forward(inputs[own])
            return (found - targets[own].to(found.device)).square().mean() / size

        take_turns(block, step)
        accumulate(block, loss_of, count)
        update(trained, step + 1, factor, device)
    take_turns(block, 0)
    after = _error(forward, inputs, targets, device)
    if not after < before:
        _restore(parameters, kept)
        after = before
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    return before, after


@torch.no_grad()
def _restore(parameters: Mapping[str, nn.Parameter], kept: Mapping[str, torch.Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(kept[name])


def _error(forward: Forward, inputs: torch.Tensor, targets: torch.Tensor, device: torch.device) -> float:
    def one(i: int) -> tuple[float, float]:
        with torch.no_grad():
            wanted = targets[i : i + 1].double()
            off = forward(inputs[i : i + 1]).cpu().double() - wanted
        return float(off.square().sum()), float(wanted.square().sum())

    found = list(each(one, range(len(inputs)), device))
    return sum(error for error, _ in found) / max(sum(size for _, size in found), 1e-30)
