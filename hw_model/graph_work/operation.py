"""What the cost model knows of one node's work, whatever operator it was: MACs, other arithmetic, bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from export.contract.errors import InputError

ACTIVATION_BYTES = 4  # our graphs compute in float32
CACHE_BYTES = 4  # and so do their caches


@dataclass(frozen=True)
class Phase:
    """One forward pass: prefill of `tokens` positions (past 0) or decode of one token behind `past` others."""

    name: str  # "prefill" or "decode"
    tokens: int
    past: int

    @staticmethod
    def of(name: str, context: int) -> Phase:
        """prefill: `context` tokens at once; decode: one token at position `context`. Raises InputError otherwise."""
        if name not in ("prefill", "decode"):
            raise InputError(f"--phase must be prefill or decode, not {name!r}")
        if not 1 <= context <= 2**24:
            raise InputError(f"--context must be 1 to {2**24}, not {context}")
        return Phase(name, context, 0) if name == "prefill" else Phase(name, 1, context - 1)

    @property
    def total(self) -> int:
        return self.past + self.tokens


@dataclass(frozen=True)
class Operation:
    """The work of one node in one forward pass, batch size one."""

    name: str
    # linear, experts, sparse, attention, embedding, normalization, activation, rotary, elementwise, mask, ...
    kind: str
    macs: int = 0  # multiply-accumulates
    vector_ops: int = 0  # other arithmetic
    weight_bytes: int = 0  # read from the stored model at their real bits
    cache_read_bytes: int = 0
    cache_write_bytes: int = 0
    cache_bytes_each: float = CACHE_BYTES  # of one cached number
    activation_bytes: int = 0  # inputs and outputs
    rows: int = 0  # N and K of a weight matrix
    columns: int = 0
    weight_bits: float = 0.0  # stored bits per weight, everything included
    heads: int = 0  # attention only
    kv_heads: int = 0
    head_dim: int = 0
    stored_bytes: int = 0  # experts: of all of them, of which weight_bytes are read

    @property
    def bytes(self) -> int:
        return self.weight_bytes + self.cache_read_bytes + self.cache_write_bytes + self.activation_bytes


def held_bytes(operations: Iterable[tuple[Operation, int]]) -> int:
    """Stored bytes, of operations with their counts, that no array of a matrix holds: outliers, norms and biases."""
    return sum(op.weight_bytes * count for op, count in operations if op.kind not in ("linear", "embedding"))


def expert_notes(operations: Iterable[tuple[Operation, int]]) -> tuple[str, ...]:
    """The line of a report that says what of the experts is read; none for a model without them."""
    stored = read = 0
    for op, count in operations:
        stored, read = stored + op.stored_bytes * count, read + (op.weight_bytes * count if op.stored_bytes else 0)
    if not stored:
        return ()
    return (f"experts: {read / 1e6:.3g} of {stored / 1e6:.3g} MB are read, picks taken as evenly spread",)


def outlier_notes(operations: Iterable[tuple[Operation, int]], assumption: str) -> tuple[str, ...]:
    """The line of a report that says how a machine multiplies outliers; none for a model without them."""
    size = sum(op.weight_bytes * count for op, count in operations if op.kind == "sparse")
    return (f"outliers, {size / 1e6:.2g} MB with their places: {assumption}",) if size else ()
