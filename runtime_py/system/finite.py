"""The check of everything that leaves a model: NaN and infinity end a request, instead of choosing token 0 for ever."""

from __future__ import annotations

import numpy as np

from export.contract.errors import NotFiniteError


def checked_logits(logits: np.ndarray, who: str = "the model") -> np.ndarray:
    """The logits [T, vocabulary] themselves. A token may have -inf, which rules it out, but not all tokens.

    Raises NotFiniteError on NaN, +inf, or a position where every logit is -inf.
    """
    if len(logits) == 1:  # every generated token comes here, and this way costs it the least
        finite = np.isfinite(logits[0, logits.argmax()])
    else:
        finite = np.isfinite(logits.max(axis=-1)).all()
    if not finite:  # a maximum is NaN where any number is
        raise NotFiniteError(f"{who} gives logits that are NaN or infinite: its weights or sums exceed float32")
    return logits
