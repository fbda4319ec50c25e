"""Trains all matrices of a smaller model for some steps on the KL to the source model's outputs.

The tuner of quantized models (toolchain/tune/end_to_end.py) with plain weights in place of codes: its batches, its
schedule, its state on disk. Needs both models in memory, and three times the smaller one more for Adam.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from toolchain.calibrate.own_text import whole_model
from toolchain.numerics.products import FLOAT32, keep_rounded_only
from toolchain.settings.shrinking.shrink import HealSettings
from toolchain.source.checkpoint import SourceModel
from toolchain.source.heads import open_model
from toolchain.system.progress import Reporter
from toolchain.tune.end_to_end import STATE_FILE, Tuner, TuneSettings
from toolchain.tune.trainable.plain import TrainablePlain

# Tokens for each weight from which on a model learns at the full rate. KL before and after, at several rates:
# scribe-6M, a fifth cut by magnitude, 0.0085 tokens a weight: 0.408, then 0.188 at 0.005, 0.287 at 0.002;
# SmolLM2-135M, a tenth cut by joint-rank, 0.0006: 0.330, then 0.401 at 0.005, 0.268 at 0.001, 0.269 at 0.0005.
_FULL_RATE_TOKENS = 0.01
_FULL_RATE, _LEAST_RATE = 0.005, 0.001


def default_rate(tokens: float) -> float:
    """Learning rate, relative to each tensor's root mean square, for so many tokens of all steps for each weight."""
    return max(_FULL_RATE * min(tokens / _FULL_RATE_TOKENS, 1.0), _LEAST_RATE)


def healed_tensors(
    teacher: SourceModel, smaller: Path, windows: np.ndarray, settings: HealSettings, seed: int, folder: Path,
    quiet: bool, precision: str = FLOAT32,
) -> Iterator[tuple[str, torch.Tensor]]:  # fmt: skip
    """The tensors of the model in `smaller` after training, float32 by name.

    windows: token ids int64 [count, length]; folder: keeps the state that a stopped run goes on from.
    """
    source, spec = open_model(smaller)
    guide, student = whole_model(teacher, precision), whole_model(source, precision)
    keep_rounded_only(guide)
    layers = [f"{spec.block_name(n)}{name}" for n in range(spec.blocks) for name in spec.names(n).linears()]
    for name in layers:
        student.set_submodule(name, TrainablePlain(student.get_submodule(name)))
    weights = sum(source.size(f"{name}.weight") for name in layers)
    rate = settings.heal_rate or default_rate(settings.heal_steps * settings.heal_batch * windows.shape[1] / weights)
    tune = TuneSettings(settings.heal_steps, rate, 16, settings.heal_batch, seed)
    tuner = Tuner(guide, student, windows, tune, folder)
    with Reporter("Healing", tune.steps, quiet) as report:
        report.step("", tuner.step)
        for _, loss in tuner.run():
            report.step(f"KL {loss:.4f}")
    (folder / STATE_FILE).unlink(missing_ok=True)
    return _tensors(source, student)


def _tensors(source: SourceModel, student: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    parameters = dict(student.named_parameters())
    for name in source.parameters():
        module = name.rpartition(".")[0]
        layer = student.get_submodule(module) if name.endswith(".weight") else None
        if isinstance(layer, TrainablePlain):
            weight = layer.latent.detach()
            yield name, weight.T if layer.transposed else weight
        else:
            yield name, parameters[name].detach()
