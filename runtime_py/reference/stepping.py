"""Tokens of each of several texts, one after another: what runners do that cannot compute them together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from export.contract.errors import InputError, NotFiniteError

Stepped = np.ndarray | InputError | NotFiniteError  # logits float32 [vocabulary], or why there are none


def token_by_token(runner: Any, states: Sequence[Any], runs: Sequence[Sequence[int]]) -> list[list[Stepped]]:
    """forward() for every state and each token of its run, up to the first that fails; it ends no other's run."""
    found: list[list[Stepped]] = []
    for state, run in zip(states, runs):
        rows: list[Stepped] = []
        for token in run:
            try:
                rows.append(runner.forward(state, [token], last_only=True)[-1])
            except (InputError, NotFiniteError) as error:
                rows.append(error)
                break
        found.append(rows)
    return found
