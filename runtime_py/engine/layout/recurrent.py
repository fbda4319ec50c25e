"""Recurrent states: how they are shared out, and scratch memory (kernels/recurrent/)."""

from __future__ import annotations

COLUMNS = 32  # of a state that are changed together
GROUP = 16  # tokens whose numbers by head are made together
DELTA_SCRATCH = 4 * 5 * GROUP  # bytes: those numbers
SPACE_SCRATCH = 4 * 2 * GROUP  # bytes: numbers of some tokens
