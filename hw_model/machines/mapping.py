"""Placing matrices on arrays: resident or reloaded, how many copies, how many buffers, pipelined or layer by layer.

The candidates are few enough to try them all; the machine (pim.py) prices each and keeps the best for the objective.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

_SHARES = (0.125, 0.25, 0.5, 1.0)  # of the chip's arrays that reloading may use
_COPIES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Mapping:
    """One way to run a model on a number of arrays."""

    resident_share: float  # of the matrices that stay in their arrays from pass to pass
    copies: int = 1  # of every resident matrix: tokens of a prompt are shared out among them
    working: int = 0  # arrays through which the other matrices pass
    buffers: int = 1  # 2: half of the working arrays compute while the other half is loaded
    pipelined: bool = False  # tokens of a prompt follow one another through the layers

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def candidates(needed: int, arrays: int, several_tokens: bool, follow: bool) -> Iterator[Mapping]:
    """Every mapping of `needed` arrays' worth of weights on `arrays` that is worth a try.

    follow: whether tokens may follow one another through the layers.
    """
    if needed <= arrays:
        for copies in _COPIES:
            if copies * needed <= arrays and (copies == 1 or several_tokens):
                for pipelined in (False, True) if follow else (False,):
                    yield Mapping(1.0, copies, pipelined=pipelined)
        return
    for share in _SHARES:
        working = max(round(arrays * share), 1)
        resident = max(arrays - working, 0) / needed
        for buffers in (1, 2):
            if buffers <= working:
                yield Mapping(resident, 1, working, buffers)


def describe(mapping: Mapping, needed: int, arrays: int) -> str:
    """One line for people."""
    if mapping.resident_share == 1.0:
        copies = f", {mapping.copies} copies" if mapping.copies > 1 else ""
        pace = ", tokens pipelined through the layers" if mapping.pipelined else ""
        return f"all weights resident: {needed:,} of {arrays:,} arrays{copies}{pace}"
    buffers = "double-buffered" if mapping.buffers > 1 else "single-buffered"
    return (
        f"{100 * mapping.resident_share:.1f} % of the weights resident; the rest passes through {mapping.working:,} of "
        f"{arrays:,} arrays, {buffers}"
    )
