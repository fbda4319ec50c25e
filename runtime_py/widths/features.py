"""What a cache holds of a prompt, as the learned scheduler reads it: one layer's keys and values, means over heads."""

from __future__ import annotations

import numpy as np

from runtime_py.engine.layout.attention import FLOAT_ITEM, PAGE
from runtime_py.engine.plan.values import AttentionShape
from runtime_py.engine.state import EngineState


def prompt_features(
    state: EngineState, shape: AttentionShape, layer: int, tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values of the first `tokens` tokens in a layer, means over heads, float32 [tokens, head dim].

    shape: of a cache of numbers, not codes. Values that are narrower than keys are filled up with zeros, wider ones cut
    off.
    """
    width, blocks = shape.head_dim, -(-tokens // PAGE)
    kinds = [np.float32 if item == FLOAT_ITEM else np.float16 for item in state.items[layer]]
    keys = state.keys[layer][:, :blocks].view(kinds[0])[..., : PAGE * width]  # [heads, blocks, numbers of a block]
    keys = keys.reshape(len(keys), blocks, width, PAGE).astype(np.float32).mean(axis=0)
    values = state.values[layer][:, :blocks].view(kinds[1])
    values = values.reshape(len(values), blocks * PAGE, -1).astype(np.float32).mean(axis=0)[:tokens, :width]
    filled = np.zeros((tokens, width), np.float32)
    filled[:, : values.shape[1]] = values
    return np.ascontiguousarray(keys.transpose(0, 2, 1).reshape(-1, width)[:tokens]), filled
