"""Token generation without text, for comparing runners."""

from __future__ import annotations

import numpy as np


def greedy_tokens(runner, state, prompt: list[int], count: int) -> list[int]:
    """`count` most likely tokens after the prompt."""
    tokens = [int(np.argmax(runner.forward(state, prompt, last_only=True)[-1]))]
    while len(tokens) < count:
        tokens.append(int(np.argmax(runner.forward(state, tokens[-1:], last_only=True)[-1])))
    return tokens
