"""Models that exist in memory only, and how well they predict a text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from toolchain.numerics.products import with_precision
from toolchain.source.checkpoint import SourceModel
from toolchain.source.config import transformers_config
from toolchain.system.device import CPU, each


class InMemory:
    """A checkpoint's tensors, float32, each read once; not to be changed in place."""

    def __init__(self, source: SourceModel) -> None:
        self._source = source
        self._read: dict[str, torch.Tensor] = {}

    def parameters(self) -> list[str]:
        return self._source.parameters()

    def tensor(self, name: str) -> torch.Tensor:
        """Raises as the source does."""
        if name not in self._read:
            self._read[name] = self._source.tensor(name)
        return self._read[name]


def model_of(config: dict[str, Any], tensors: Iterable[tuple[str, torch.Tensor]], precision: str) -> PreTrainedModel:
    """transformers' model of a resolved config with these tensors, float32, without gradients."""
    made = transformers_config(config)
    with torch.device("meta"):
        kind = type(AutoModelForCausalLM.from_config(made))
    model: PreTrainedModel = kind.from_pretrained(None, config=made, state_dict=dict(tensors), dtype=torch.float32)
    with_precision(model.eval().requires_grad_(False), precision)
    return model


def mean_loss(model: PreTrainedModel, tokens: np.ndarray) -> float:
    """Nats a token of sequences int64 [count, length], each alone; infinite where they are no number."""

    def one(row: np.ndarray) -> float:
        with torch.no_grad():
            ids = torch.from_numpy(row[None])
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
            return float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="mean"))

    mean = float(np.mean(list(each(one, tokens, CPU))))
    return mean if np.isfinite(mean) else float("inf")
