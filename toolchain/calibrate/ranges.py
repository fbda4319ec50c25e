"""Largest magnitudes of what becomes integers: inputs of linear layers, and cached keys and values. Calibration."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from export.contract.rotation import rotate_columns, rotation_size
from toolchain.calibrate.blocks import BlockRunner


@dataclass
class Ranges:
    """inputs by layer name; keys and values float64 [kv_heads] (empty until a block with a cache has run)."""

    inputs: dict[str, float] = field(default_factory=dict)
    # lowest and highest value of each channel, float64 [K] each
    channels: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    keys: np.ndarray = field(default_factory=lambda: np.zeros(0))
    values: np.ndarray = field(default_factory=lambda: np.zeros(0))


class CacheRecorder:
    """Stands for the key-value cache of one forward pass: sees keys after their rotation, keeps only their range."""

    def __init__(self, ranges: Ranges) -> None:
        self._ranges = ranges
        self.is_compileable = False

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """keys, values: [batch, kv_heads, tokens, head_dim]."""
        found = self._ranges
        for name, tensor in (("keys", keys), ("values", values)):
            top = tensor.detach().abs().amax(dim=(0, 2, 3)).cpu().double().numpy()
            old = getattr(found, name)
            setattr(found, name, np.maximum(old, top) if old.size else top)
        return keys, values

    def get_seq_length(self, layer: int = 0) -> int:
        return 0

    # Of a state space beside the attention: there is no state yet, and none is kept.

    def get_conv_state(self, *args: Any, **kwargs: Any) -> None:
        return None

    def get_recurrent_state(self, *args: Any, **kwargs: Any) -> None:
        return None

    def update_conv_state(self, inputs: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return inputs

    def update_recurrent_state(self, state: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return state


def measure_ranges(
    runner: BlockRunner, block: nn.Module, names: tuple[str, ...], hidden: torch.Tensor, rotated: bool
) -> tuple[Ranges, torch.Tensor]:
    """Ranges of one block over all sequences, and its outputs float32 [sequences, length, hidden].

    A block without keys and values has ranges of its inputs only.

    rotated: ranges of inputs are those behind the Hadamard rotation.
    """
    ranges = Ranges()
    seen: weakref.WeakValueDictionary[int, torch.Tensor] = weakref.WeakValueDictionary()
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def hook(name: str) -> Callable[..., None]:
        def record(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            x = inputs[0]
            if seen.get(id(x)) is not x:  # query, key and value (gate and up) read the same tensor
                rows = x.detach().reshape(-1, x.shape[-1]).cpu().numpy()
                rows = rotate_columns(rows, rotation_size(rows.shape[1])) if rotated else rows
                seen[id(x)] = x
                found[id(x)] = rows.min(axis=0).astype(np.float64), rows.max(axis=0).astype(np.float64)
            low, high = found[id(x)]
            if name in ranges.channels:
                low, high = np.minimum(low, ranges.channels[name][0]), np.maximum(high, ranges.channels[name][1])
            ranges.channels[name] = low, high
            ranges.inputs[name] = max(float(-low.min()), float(high.max()))

        return record

    handles = [block.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]
    try:
        cached = runner.spec.causal and runner.names(block).attends
        outputs = runner.run(block, hidden, CacheRecorder(ranges) if cached else None)
    finally:
        for handle in handles:
            handle.remove()
    return ranges, outputs
