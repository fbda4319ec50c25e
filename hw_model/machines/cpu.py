"""CPU targets by roofline: each node takes the longer of its memory time and its arithmetic time.

Weights and cache come from DRAM at the bandwidth that published decode rows reach, the cache at the width that the
runtime keeps it in; activations are assumed to stay in cache. Energy is board power times latency, an upper bound: DRAM
itself is a few percent of it.
"""

from __future__ import annotations

from hw_model.graph_work.workload import Operation, Phase, expert_notes, outlier_notes
from hw_model.machines.result import ComponentCost, CostReport, group_by_kind
from targets import Target


def cost(operations: list[Operation], phase: Phase, target: Target) -> CostReport:
    """Cost of one forward pass."""
    power = target["board_power"]
    rows = []
    for op in operations:
        latency = _latency(op, target, target["memory_bandwidth"], target["compute_rate"])
        rows.append((op.kind, op.macs, round(_dram_bytes(op, target)), latency, latency * power))
    bandwidth, rate = target.constants["memory_bandwidth"], target.constants["compute_rate"]
    spans = [
        sum(_latency(op, target, b or bandwidth.value, r or rate.value) for op in operations)
        for b, r in ((bandwidth.high, rate.high), (bandwidth.low, rate.low))
    ]
    latency = sum(row[3] for row in rows)
    return CostReport(
        target=target.name,
        kind=target.kind,
        phase=phase.name,
        context=phase.total,
        tokens=phase.tokens,
        latency_s=latency,
        energy_j=latency * power,
        area_mm2=None,
        latency_low_s=spans[0],
        latency_high_s=spans[1],
        by_kind=group_by_kind(rows),
        basis="modelled: roofline with constants derived from published measurements",
        notes=(
            "energy is peak wall power of the board times latency, an upper bound",
            *expert_notes((op, 1) for op in operations),
            *outlier_notes(
                ((op, 1) for op in operations), "read in every pass, two operations each at the rate of the others"
            ),
        ),
        components=(ComponentCost("whole board", latency * power, 0.0),),
        peak_macs_per_s=rate.value / 2,
        memory_bytes_per_s=bandwidth.value,
        memory_bytes=sum(_dram_bytes(op, target) for op in operations),
        macs=sum(op.macs for op in operations),
    )


def _dram_bytes(op: Operation, target: Target) -> float:
    """Weights as stored; a cached number as wide as in the runtime's memory, razored ones as the graph has them."""
    each = min(target["cache_bits"] / 8, op.cache_bytes_each)
    return op.weight_bytes + (op.cache_values + op.new_values) * each


def _latency(op: Operation, target: Target, bandwidth: float, rate: float) -> float:
    return max(_dram_bytes(op, target) / bandwidth, (2 * op.macs + op.vector_ops) / rate)
