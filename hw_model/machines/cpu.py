"""CPU targets by roofline: each node takes the longer of its memory time and its arithmetic time.

Weights and cache come from DRAM at the bandwidth that published decode rows reach, the cache at the width that the
runtime keeps it in; activations are assumed to stay in cache. Energy is board power times latency, an upper bound: DRAM
itself is a few percent of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from hw_model.graph_work.workload import Operation, Phase, expert_notes, outlier_notes
from hw_model.machines.pim import collapse
from hw_model.machines.ranges import Figures, as_they_are, ranges, spanned
from hw_model.machines.result import ComponentCost, CostReport, group_by_kind, shares
from targets import Target


def cost(operations: Sequence[Operation], phase: Phase, target: Target, ranged: bool) -> CostReport:
    """Cost of one forward pass."""
    unique, waits, rows = collapse(operations), {"memory": 0.0, "arithmetic": 0.0}, []
    for op, count in unique:
        memory, arithmetic = _times(op, target)
        latency = max(memory, arithmetic)
        waits["memory" if memory >= arithmetic else "arithmetic"] += latency * count
        rows += [(op.kind, op.macs, round(_dram_bytes(op, target)), latency, latency * target["board_power"])] * count

    def figures(other: Target) -> Figures:
        seconds = sum(max(_times(op, other)) * count for op, count in unique)
        return seconds, seconds * other["board_power"], 0.0

    latency, joules, _ = figures(target)
    spans = ranges(figures, target) if ranged else as_they_are((latency, joules, 0.0))
    return CostReport(
        target=target.name,
        kind=target.kind,
        phase=phase.name,
        context=phase.total,
        tokens=phase.vectors,
        latency_s=latency,
        energy_j=joules,
        area_mm2=None,
        **spanned(spans, has_area=False),
        waits_for=shares(waits),
        by_kind=group_by_kind(rows),
        basis="modelled: roofline with constants derived from published measurements",
        notes=(
            "energy is peak wall power of the board times latency, an upper bound",
            *expert_notes(unique),
            *outlier_notes(unique, "read in every pass, two operations each at the rate of the others"),
        ),
        components=(ComponentCost("whole board", joules, 0.0),),
        peak_macs_per_s=target["compute_rate"] / 2,
        memory_bytes_per_s=target["memory_bandwidth"],
        memory_bytes=sum(_dram_bytes(op, target) * count for op, count in unique),
        macs=sum(op.macs * count for op, count in unique),
    )


def _dram_bytes(op: Operation, target: Target) -> float:
    """Weights as stored; a cached number as wide as in the runtime's memory, razored ones as the graph has them."""
    each = min(target["cache_bits"] / 8, op.cache_bytes_each)
    return op.weight_bytes + (op.cache_values + op.new_values) * each


def _times(op: Operation, target: Target) -> tuple[float, float]:
    """Seconds of memory and of arithmetic."""
    memory = _dram_bytes(op, target) / target["memory_bandwidth"]
    return memory, (2 * op.macs + op.vector_ops) / target["compute_rate"]
