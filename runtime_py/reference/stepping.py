"""A token of each of several texts, one after another: what runners do that cannot compute them together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from export.contract.errors import InputError, NotFiniteError

Stepped = np.ndarray | InputError | NotFiniteError  # logits float32 [vocabulary], or why there are none


def one_by_one(runner: Any, states: Sequence[Any], tokens: Sequence[int]) -> list[Stepped]:
    """forward() for every state and its token; one text's failure does not end the others."""
    found: list[Stepped] = []
    for state, token in zip(states, tokens):
        try:
            found.append(runner.forward(state, [token], last_only=True)[-1])
        except (InputError, NotFiniteError) as error:
            found.append(error)
    return found
