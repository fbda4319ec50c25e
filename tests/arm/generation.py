"""A short generation by a whole model, from kernels that are there or are compiled."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from runtime_py.load import open_model

TOKENS = 20


def generation(folder: Path) -> dict[str, np.ndarray]:
    """Greedy tokens after a fixed prompt, and the logits of every step (bit patterns)."""
    model, why = open_model(folder)
    assert why == ""
    state = model.new_state()
    logits = model.forward(state, [1, 403, 407, 261, 378], last_only=True)
    tokens, rows = [], [logits[-1]]
    for _ in range(TOKENS):
        tokens.append(int(rows[-1].argmax()))
        rows.append(model.forward(state, tokens[-1:], last_only=True)[-1])
    return {"tokens": np.array(tokens), "logits": np.array(rows).view(np.uint32)}
