"""One answer under a grammar: which tokens may come next, and whether it is complete."""

from __future__ import annotations

from typing import Any

import numpy as np

from export.contract.errors import InputError


class FormError(InputError):
    """An answer cannot go on under its form; `where` is the field or option that the form came from."""

    def __init__(self, where: str, message: str) -> None:
        super().__init__(f"{where}: {message}")
        self.where = where


class FormConstraint:
    """Call apply() for every token, then note() with the one that was drawn."""

    def __init__(self, matcher: Any, size: int, stops: frozenset[int], where: str) -> None:
        """matcher: of llguidance, this answer's own; size: logits; stops: tokens that end the answer."""
        self._matcher, self._size, self._where = matcher, size, where
        self._stops = np.array([token for token in stops if 0 <= token < size], np.int64)
        self._bits = np.zeros(size // 32 + 1, np.uint32)  # one for each token and one for the end

    def apply(self, logits: np.ndarray) -> np.ndarray:
        """The logits float32 [size] with -inf where the form does not allow the token; those given stay as they are.

        Tokens that end the answer are allowed where it is complete, and nowhere else. Raises FormError when nothing
        is left, or the grammar is too costly to go on with.
        """
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        if self._matcher.is_error():
            raise FormError(self._where, f"the grammar became too costly ({self._reason()})")
        allowed = np.unpackbits(self._bits.view(np.uint8), bitorder="little")[: self._size + 1].view(bool)
        allowed[self._stops] = allowed[self._size]
        out = np.where(allowed[: self._size], logits, np.float32(-np.inf))
        if out.max() == -np.inf:
            raise FormError(self._where, "no token is left that this form allows")
        return out

    def note(self, token: int) -> bool:
        """Tell which token was drawn; whether the answer is complete and nothing can follow."""
        if not self._matcher.consume_token(token):
            raise FormError(self._where, f"the grammar became too costly ({self._reason()})")
        return bool(self._matcher.is_stopped())

    def _reason(self) -> str:
        return " ".join(self._matcher.get_error().split())[:200]
