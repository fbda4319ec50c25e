"""What the cost model knows of one node's work, whatever operator it was: MACs, other arithmetic, bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from export.contract.errors import InputError
from export.contract.pages import PAGE

ACTIVATION_BYTES = 4  # our graphs compute in float32
CACHE_BYTES = 4  # and so do their caches
QUANTIZE_OPS = 8  # of a number that becomes a code: scale, round, clip, magnitude, OR, shift, round, saturate


@dataclass(frozen=True)
class Phase:
    """One forward pass: prefill of `tokens` positions (past 0) or decode of one token behind `past` others.

    `sequences` texts of this length are computed together; each has keys, values and states of its own.
    """

    name: str  # "prefill" or "decode"
    tokens: int  # of each sequence
    past: int
    sequences: int = 1

    @staticmethod
    def of(name: str, context: int, sequences: int = 1) -> Phase:
        """prefill: `context` tokens at once; decode: one token at position `context`. Raises InputError otherwise."""
        if name not in ("prefill", "decode"):
            raise InputError(f"--phase must be prefill or decode, not {name!r}")
        if not 1 <= context <= 2**24:
            raise InputError(f"--context must be 1 to {2**24}, not {context}")
        if not 1 <= sequences <= 2**16:
            raise InputError(f"--batch must be 1 to {2**16} sequences, not {sequences}")
        return Phase(name, context, 0, sequences) if name == "prefill" else Phase(name, 1, context - 1, sequences)

    @property
    def vectors(self) -> int:
        """Tokens of all sequences."""
        return self.tokens * self.sequences

    @property
    def total(self) -> int:
        return self.past + self.tokens


@dataclass(frozen=True)
class Operation:
    """The work of one node in one forward pass of all sequences."""

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
    density: float = 1.0  # share of the matrix's weights that are not zeros by its format
    heads: int = 0  # attention only
    kv_heads: int = 0
    head_dim: int = 0
    window: int = 0  # keys a query sees at most on one side, itself among them; 0: all
    selected: int = 0  # keys a query reads at most of those that it sees, and then the mean of each page; 0: all
    causal: bool = True  # whether a query sees nothing that lies ahead
    stored_bytes: int | None = None  # of the file that no other operation accounts for; None: as many as are read
    uses: int = 1  # nodes that multiply with the same matrix, this one among them
    again: bool = False  # whether a node before it multiplies with the same matrix
    coded: bool = False  # whether another node has made its inputs codes already
    # of a product whose activations are in channel groups (Tender): bits of a code of either side, one-bit shifts of an
    # accumulator; None for all others
    code_bits: tuple[int, int] | None = None
    plane_bits: int = 8  # planes of the weights: the bits of uniform codes, or of a codebook's entries
    input_bits: int = 0  # bit planes of the activations where the file says so; 0: as the target has them
    shifts: int = 0
    quantized: int = 0  # numbers that it makes codes of
    quantize_ops: int = QUANTIZE_OPS  # of its vector_ops that each of these takes
    changes: bool = False  # whether its weights are a task's own: they lie in memory that is rewritten

    @property
    def bytes(self) -> int:
        return self.weight_bytes + self.cache_read_bytes + self.cache_write_bytes + self.activation_bytes

    @property
    def other_ops(self) -> int:
        """Vector operations but those that make codes, for which a machine may have units of their own."""
        return self.vector_ops - self.quantize_ops * self.quantized

    @property
    def stored(self) -> int:
        """Bytes of the file that are accounted for here."""
        return self.weight_bytes if self.stored_bytes is None else self.stored_bytes

    @property
    def vectors(self) -> int:
        """Vectors that the matrix is multiplied with."""
        return self.macs // (self.rows * self.columns)

    @property
    def pairs(self) -> int:
        """Attention: query-key pairs of one head, over all sequences."""
        return self.macs // (2 * self.heads * self.head_dim)

    def keys(self, phase: Phase) -> np.ndarray:
        """Attention: keys that each query reads, int64 [vectors]; their sum is `pairs`."""
        place = np.tile(phase.past + np.arange(phase.tokens), phase.sequences)
        if self.selected:
            return np.where(place < self.selected, place + 1, self.selected + (place + 1) // (2 * PAGE))
        behind = np.minimum(place + 1, self.window or phase.total)
        return behind if self.causal else behind + np.minimum(phase.total - place, self.window or phase.total) - 1

    @property
    def is_cached(self) -> bool:
        """Whether it keeps something from one pass to the next."""
        return self.cache_read_bytes + self.cache_write_bytes > 0

    @property
    def cache_values(self) -> float:
        """Numbers of the cache that are read."""
        return self.cache_read_bytes / self.cache_bytes_each

    @property
    def new_values(self) -> float:
        """Numbers of the cache that are written."""
        return self.cache_write_bytes / self.cache_bytes_each

    def held_values(self, phase: Phase) -> int:
        """Attention: numbers of keys and values that are there while it computes."""
        reach = self.window + phase.tokens - 1 if self.window else phase.total
        return 2 * phase.sequences * min(phase.total, reach) * self.kv_heads * self.head_dim


def held_bytes(operations: Iterable[tuple[Operation, int]]) -> int:
    """Stored bytes, of operations with their counts, that no array of a matrix holds: outliers, norms and biases."""
    return sum(op.stored * count for op, count in operations if op.kind not in ("linear", "embedding"))


def held_values(operations: Iterable[tuple[Operation, int]], phase: Phase) -> int:
    """Numbers of keys and values that a machine holds at once: of all layers, of an encoder's one after another."""
    layers = [(op, count) for op, count in operations if op.kind == "attention"]
    kept = sum(op.held_values(phase) * count for op, count in layers if op.is_cached)
    return kept + max((op.held_values(phase) for op, _ in layers if not op.is_cached), default=0)


def held_states(operations: Iterable[tuple[Operation, int]]) -> float:
    """Numbers of recurrent states of all layers, each of which a pass reads and writes once."""
    return sum(op.cache_values * count for op, count in operations if op.kind != "attention")


def expert_notes(operations: Iterable[tuple[Operation, int]]) -> tuple[str, ...]:
    """The line of a report that says what of the experts is read; none for a model without them."""
    experts = [(op, count) for op, count in operations if op.kind == "experts"]
    if not experts:
        return ()
    stored, read = sum(op.stored * n for op, n in experts), sum(op.weight_bytes * n for op, n in experts)
    return (f"experts: {read / 1e6:.3g} of {stored / 1e6:.3g} MB are read, picks taken as evenly spread",)


def outlier_notes(operations: Iterable[tuple[Operation, int]], assumption: str) -> tuple[str, ...]:
    """The line of a report that says how a machine multiplies outliers; none for a model without them."""
    size = sum(op.weight_bytes * count for op, count in operations if op.kind == "sparse")
    return (f"outliers, {size / 1e6:.2g} MB with their places: {assumption}",) if size else ()
