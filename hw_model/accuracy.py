"""What a machine's numbers lose against the file's own: a cost that is no time, energy or area, and yet is one.

A machine that multiplies the file's integers exactly loses nothing here; one that does not says why. What it loses is
known only from emulation (`eval --emulate`), as Kullback-Leibler divergence from the source model, in nats a token;
where there is none, it is not measured, and nothing may rank it before what is exact. Integer softmax, norms and keys
and values of 8 bits count as exact: on scribe-6M they change the perplexity by less than it is known (docs/cost.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hw_model.graph_work.workload import Operation
from hw_model.machines.array import build
from targets import Target

_CODE_BITS = 8  # of codebook entries and of activations in the runtime
_ROUNDED = 0.9  # of the stored bits: scales and codebooks are moved once for many weights
NOT_MEASURED = "accuracy not measured"


@dataclass(frozen=True)
class Accuracy:
    """losses: why the machine's results differ from the file's own; kl: of them, None where it is not known."""

    losses: tuple[str, ...] = ()
    kl: float | None = None

    @property
    def is_known(self) -> bool:
        return not self.losses or self.kl is not None

    def text(self) -> str:
        """For a table."""
        if self.kl is not None:
            return f"KL {self.kl:.4f}"
        return f"{NOT_MEASURED}: {', '.join(self.losses)}" if self.losses else "as the file"


def losses(target: Target, work: Sequence[Operation]) -> tuple[str, ...]:
    """Why the target's products are not those of the file's integers; none where they are."""
    products = [op for op in work if op.kind in ("linear", "experts")]
    plain = any(not op.coded for op in products)  # not SDR codes, which 4 bits hold
    found = []
    if target.kind == "attentionlego":
        found.append("converters of 6 bits, a table as softmax")
    if target.kind == "pim":
        if not build(target).lossless:
            found.append(f"converters of {target['adc_bits']:g} bits")
        if target["weight_bits"] < _CODE_BITS and plain:
            found.append(f"weights of {target['weight_bits']:g} bits")
        moved, stored = target["transfer_bits"], max((op.weight_bits for op in products), default=0.0)
        if 0 < moved < _ROUNDED * min(stored, target["weight_bits"]):
            found.append(f"weights moved at {moved:g} bits")
        if target["input_bits"] < _CODE_BITS and plain:
            found.append(f"inputs of {target['input_bits']:g} bits")
    if target.kind == "stream":
        if 0 < target["weight_bits"] < _CODE_BITS and plain:
            found.append(f"weights of {target['weight_bits']:g} bits")
        priced = target["planes"] or target["activation_groups"] > 1  # others compute with what the file has
        if priced and target["activation_bits"] < _CODE_BITS and plain:
            found.append(f"activations of {target['activation_bits']:g} bits")
        if target["density"] < 1:
            found.append(f"{100 * target['density']:.0f} % of the weights")
    attention = [op for op in work if op.kind == "attention" and op.is_cached]
    narrow = 8 * min((op.cache_bytes_each for op in attention), default=0.0)  # codes of the graph's own
    if target.kind != "attentionlego" and attention and target["cache_bits"] < min(_CODE_BITS, narrow):
        found.append(f"keys and values of {target['cache_bits']:g} bits")
    return tuple(found)
