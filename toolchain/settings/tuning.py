"""Gradient descent after the solver: block by block, and end to end against the source model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from toolchain.settings.option import option

AUTOMATIC, SHORT = -1, -2
# Steps times parameters: 90 steps of four windows, eleven minutes and five of writing own text, for 135 million
# parameters on two cores that multiply bfloat16.
_STEP_PARAMETERS = 12.2e9
_LEAST_STEPS, _MOST_STEPS = 60, 2000
# Smaller models are exported in seconds, and stay so; of larger ones tuning would take most of the time and memory.
_SHORT_STEPS, _SHORT_FOR = 24, (20e6, 200e6)  # parameters


@dataclass(frozen=True)
class TuningSettings:
    """How long and how fast stored weights are tuned."""

    PANEL: ClassVar[str] = "Tuning"

    block_steps: int = option(
        0, "Steps of tuning each block on its own output error (abq: its clipping and smoothing); 0: none", low=0,
        high=10**7,
    )  # fmt: skip
    tune_steps: int = option(
        0, "Steps of end-to-end tuning on the KL to the source model; 0: none, -1: by the model's size, -2: a few, for "
        "20 to 200 million parameters", low=SHORT, high=10**7, common=True,
    )  # fmt: skip
    tune_rate: float = option(
        0.0, "Learning rate of codes, relative to each tensor's root mean square; 0: by the width", low=0.0, high=1.0
    )
    tune_batch: int = option(8, "Windows a step", low=1, high=4096)
    tune_length: int = option(256, "Tokens a window", low=2, high=2**20)

    def steps_for(self, parameters: int) -> int:
        """Steps of end-to-end tuning for a model of so many parameters."""
        if self.tune_steps == SHORT:
            return _SHORT_STEPS if _SHORT_FOR[0] <= parameters <= _SHORT_FOR[1] else 0
        if self.tune_steps != AUTOMATIC:
            return self.tune_steps
        return int(min(max(_STEP_PARAMETERS / max(parameters, 1), _LEAST_STEPS), _MOST_STEPS))
