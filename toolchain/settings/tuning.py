"""Gradient descent after the solver: block by block, and end to end against the source model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from toolchain.settings.option import option


@dataclass(frozen=True)
class TuningSettings:
    """How long and how fast stored weights are tuned."""

    PANEL: ClassVar[str] = "Tuning"

    block_steps: int = option(0, "Steps of tuning each block on its own output error; 0: none", low=0, high=10**7)
    tune_steps: int = option(
        0, "Steps of end-to-end tuning on the KL to the source model; 0: none", low=0, high=10**7, common=True
    )
    tune_rate: float = option(
        0.0, "Learning rate relative to each tensor's root mean square; 0: by the width", low=0.0, high=1.0
    )
    tune_batch: int = option(8, "Windows a step", low=1, high=4096)
    tune_length: int = option(256, "Tokens a window", low=2, high=2**20)
