"""Accelerators that bring weights to a MAC array: every product reads its matrix from on-chip memory or DRAM.

Used for heterogeneous memory (arXiv 2303.16100: frozen backbone in RRAM with bit-mask sparse storage, activations and
cache in SRAM: placement by mutability), for Tender (arXiv 2406.12930: INT4 array whose accumulators shift) and for
units that count bits of planes (ABQ-LLM, arXiv 2408.08554: a product of p and q bits takes p * q cycles). What
changes with the task (`Operation.changes`) lies in the SRAM buffer, as far as it fits, dense and as it is stored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hw_model.components.memory import bit_mask_bits
from hw_model.graph_work.workload import Operation, Phase, expert_notes, held_states, held_values, outlier_notes
from hw_model.machines.parts import Part, components, dram, lanes, leakage, logic
from hw_model.machines.pim import collapse
from hw_model.machines.ranges import Figures, as_they_are, ranges, spanned
from hw_model.machines.result import CostReport, group_by_kind, shares
from targets import Target


@dataclass(frozen=True)
class _Pass:
    """One forward pass."""

    works: list[tuple[Operation, int, float, float]]  # operation, count, seconds, J of one
    waits: dict[str, float]  # s by the part that is waited for; together the latency
    energies: dict[str, float]  # J by part, without leakage
    notes: tuple[str, ...]
    outside: float  # bytes from and to DRAM

    @property
    def latency(self) -> float:
        return sum(self.waits.values())


def cost(operations: Sequence[Operation], phase: Phase, target: Target, objective: str, ranged: bool) -> CostReport:
    """Cost of one forward pass; there is one mapping, so the objective changes nothing."""
    unique = collapse(operations)

    def figures(other: Target) -> Figures:
        done, parts = _evaluate(unique, phase, other), _parts(other)
        energy = sum(done.energies.values()) + leakage(parts) * done.latency
        return done.latency, energy, sum(part.area for part in parts.values())

    done, chip, (latency, joules, area) = _evaluate(unique, phase, target), _parts(target), figures(target)
    spans = ranges(figures, target) if ranged else as_they_are((latency, joules, area))
    leak, rows = leakage(chip), []
    for op, count, seconds, energy in done.works:
        rows += [(op.kind, op.macs, op.bytes, seconds, energy + leak * seconds)] * count
    return CostReport(
        target=target.name, kind=target.kind, phase=phase.name, context=phase.total, tokens=phase.vectors,
        latency_s=latency, energy_j=joules, area_mm2=area, **spanned(spans), waits_for=shares(done.waits),
        by_kind=group_by_kind(rows), basis="modelled: MAC array fed from memory, stated assumptions", notes=done.notes,
        components=components(done.energies, chip, latency),
        peak_macs_per_s=target["macs"] * target["clock"] * _share(unique, target),
        memory_bytes_per_s=target["dram_bandwidth"],
        memory_bytes=done.outside, macs=sum(op.macs * n for op, n in unique),
    )  # fmt: skip


def _parts(target: Target) -> dict[str, Part]:
    """All that the chip is made of."""
    weights, buffer = target["weight_capacity"], target["buffer_capacity"]
    ports = target["weight_bandwidth"] + target["weight_write_bandwidth"]
    port = logic(target, ports * target["port_area"])
    memory = Part(weights * target["weight_area"], weights * target["weight_leakage"])
    return {
        "MAC array": lanes(target, target["macs"], "mac_area"),
        "weight memory": Part(memory.area + port.area, memory.leakage + port.leakage),
        "buffer": Part(buffer * target["buffer_area"], buffer * target["buffer_leakage"]),
        "vector unit": lanes(target, target["vector_lanes"], "vector_area"),
        "DRAM": dram(target),
    }


def _group_notes(unique: list[tuple[Operation, int]], target: Target) -> list[str]:
    """Where shifts and widths come from; none for a machine without groups."""
    if target["planes"]:
        bits = sorted({op.plane_bits for op, _ in unique if op.kind == "linear"})
        inputs = f"{target['activation_bits']:g}-bit activations, {target['cache_bits']:g}-bit keys and values"
        return [f"bit by bit: weights of {', '.join(map(str, bits))} planes, {inputs}"]
    groups, own = round(target["activation_groups"]), [op for op, _ in unique if op.code_bits]
    if groups <= 1:
        return []
    if not own:
        return [f"activations taken as {groups} channel groups, {groups - 1} shifts of an accumulator for a sum"]
    most = max(op.shifts for op in own)
    return [f"channel groups, bias terms and up to {most} shifts of an accumulator for a sum are the file's"]


def stored_bytes(operations: Sequence[Operation], target: Target) -> float:
    """Bytes of all matrices as this machine stores them, each once."""
    kept = [op for op in operations if op.kind == "linear" and not op.again and not op.changes]
    return sum(op.rows * op.columns * _stored_bits(op, target) / 8 for op in kept)


def _stored_bits(op: Operation, target: Target) -> float:
    bits = op.weight_bits if op.code_bits else target["weight_bits"] or op.weight_bits
    return bit_mask_bits(min(target["density"], op.density), bits) if target["density"] < 1 else bits


def _share(unique: list[tuple[Operation, int]], target: Target) -> float:
    """Multiply-accumulates of whole numbers for a cycle of an element, of all these operations together."""
    slots = sum(_slots(op, target) * count for op, count in unique)
    return sum(op.macs * count for op, count in unique) / slots if slots and target["planes"] else 1.0


def _slots(op: Operation, target: Target) -> float:
    """Cycles of one element that a product takes.

    An element of whole numbers takes one for each pair of them and one for each shift of an accumulator. Wider codes
    than its own are taken apart: INT8 by INT8 is four INT4 products. What a file says of groups and widths is used; a
    product that says nothing is computed in the target's own groups (hw_model/functional/tender.py). A lane of bit
    planes takes one for each pair of bits. A machine that skips zeros takes none for weights that the file has not.
    """
    if target["planes"]:
        inputs, weights = op.code_bits or (op.input_bits or target["activation_bits"], op.plane_bits)
        return op.macs * inputs * (weights if op.kind == "linear" else target["cache_bits"])
    groups = round(target["activation_groups"])
    if op.kind != "linear" or op.changes or groups <= 1:
        return op.macs * (op.density if target["skips_zeros"] else 1.0)
    passes, shifts = 1, groups - 1
    if op.code_bits:
        inputs, weights = op.code_bits
        passes = math.ceil(inputs / target["activation_bits"]) * math.ceil(weights / (target["weight_bits"] or 8))
        shifts = op.shifts
    return passes * op.macs * (1 + shifts / op.columns)


def _evaluate(unique: list[tuple[Operation, int]], phase: Phase, target: Target) -> _Pass:
    total = sum(stored_bytes([op], target) * n for op, n in unique)
    inside = min(target["weight_capacity"] / total, 1.0) if total else 1.0
    cache = (held_values(unique, phase) + held_states(unique)) * target["cache_bits"] / 8
    own = sum(op.stored * n for op, n in unique if op.changes and not op.again)  # of the task, first in the buffer
    held = min(target["buffer_capacity"] / own, 1.0) if own else 1.0
    cached = min((target["buffer_capacity"] - own * held) / cache, 1.0) if cache else 1.0
    parts = dict.fromkeys(("MAC array", "weight memory", "buffer", "DRAM", "vector unit"), 0.0)
    works, waits, dram_bytes = [], dict[str, float](), 0.0
    for op, count in unique:
        weights = stored_bytes([replace(op, again=False)], target) or float(op.weight_bytes)
        on_chip = weights * inside if op.kind == "linear" and not op.changes else 0.0
        kept = weights * held if op.changes else 0.0
        moved = (op.cache_values + op.new_values) * target["cache_bits"] / 8
        off_chip = weights - on_chip - kept + moved * (1 - cached)
        slots = _slots(op, target)
        gated = target["density"] < 1 and op.kind == "linear" and not op.changes
        useful = slots * (min(target["density"], op.density) if gated else 1.0)
        compute = {
            "MAC array": slots / target["macs"] / target["clock"],
            "vector unit": op.vector_ops / target["vector_lanes"] / target["clock"],
        }
        inner, outer = on_chip / target["weight_bandwidth"], off_chip / target["dram_bandwidth"]
        longest = max((compute, {"weight memory": inner}, {"DRAM": outer}), key=lambda times: sum(times.values()))
        seconds = sum(longest.values())
        for name, value in longest.items():
            waits[name] = waits.get(name, 0.0) + value * count
        energy = {
            "MAC array": useful * target["mac_energy"],
            "weight memory": on_chip * target["weight_energy"],
            "buffer": (op.activation_bytes / 4 + moved * cached + kept) * target["buffer_energy"],
            "DRAM": off_chip * target["dram_energy"],
            "vector unit": op.vector_ops * target["vector_energy"],
        }
        for name, value in energy.items():
            parts[name] += value * count
        dram_bytes += off_chip * count
        works.append((op, count, seconds, sum(energy.values())))
    notes = [f"{100 * inside:.0f} % of the weights fit into on-chip memory ({total / 1e6:.1f} MB stored)"]
    if target["density"] < 1:
        notes.append(
            f"assumes a backbone pruned to {100 * target['density']:.0f} % of its weights, stored with a bit mask"
        )
    if cached < 1:
        notes.append(f"{100 * cached:.0f} % of the cache and states fits into the buffer, the rest is in DRAM")
    notes += _group_notes(unique, target)
    notes += [f"{note}, from DRAM as they are stored" for note in expert_notes(unique)]
    notes += outlier_notes(unique, "the vector unit multiplies and adds them, read from DRAM in every pass")
    return _Pass(works, waits, parts, tuple(notes), dram_bytes)
