"""What a method gets to choose from, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from export.graph.spec import ModelSpec
from toolchain.settings.shrinking.shrink import ShrinkSettings
from toolchain.shrink.parts.budget import Budget
from toolchain.shrink.parts.cut import Cut
from toolchain.shrink.parts.family import Freedom
from toolchain.source.checkpoint import SourceModel


@dataclass(frozen=True)
class Work:
    """A source model, how small it is to become, and a text to judge by."""

    source: SourceModel
    spec: ModelSpec
    settings: ShrinkSettings
    freedom: Freedom
    budget: Budget
    tokens: Callable[[], np.ndarray]  # calibration sequences, int64 [count, length]; read when first asked for
    folder: Path  # where a method keeps what a stopped run goes on from
    precision: str  # of the products where nothing is solved (toolchain/numerics/products.py)
    quiet: bool = False


@dataclass(frozen=True)
class Choice:
    """What is left: the resolved config.json and the tensors of the smaller model."""

    config: dict[str, Any]
    tensors: Callable[[], Iterator[tuple[str, torch.Tensor]]]  # float32, by name, one at a time
    cut: Cut | None = None  # None where nothing is left out and matrices have low rank
    about: dict[str, Any] = field(default_factory=dict)  # for the report
