"""AttentionLego by its published cycle counts (arXiv 2401.11459 and its RTL).

Every weight matrix lies on 128 x 128-byte macros that all work at once, so a vector takes the same 66 cycles whatever
the matrix's size: tiles scale out in space. Scores are serial in the RTL (profile `rtl`, 9 cycles a key) though its
datapath holds the parallelism for 64 keys a cycle (profile `ideal`). The RTL ends after the softmax: the P.V engine
here mirrors the score engine and is our addition, and so are the vector unit and all energy and area figures.

Stored numbers that are no matrix (outliers, norm weights, biases, rows of tables) go to the vector unit, a byte a lane
and cycle; reading a byte is taken to cost what one of its operations costs. All but tables lie in macros, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from export.contract.errors import InputError
from hw_model.graph_work.workload import Operation, Phase, held_bytes, held_values, outlier_notes
from hw_model.machines.parts import Part, components, lanes, leakage, logic
from hw_model.machines.pim import collapse
from hw_model.machines.ranges import Figures, as_they_are, ranges, spanned
from hw_model.machines.result import CostReport, group_by_kind, shares
from targets import Target, load_target

PROFILES = ("rtl", "ideal")


def cost(operations: Sequence[Operation], phase: Phase, target: Target, profile: str, ranged: bool) -> CostReport:
    """Cost of one forward pass. Raises InputError on an unknown profile."""
    if profile not in PROFILES:
        raise InputError(f"--profile must be one of {', '.join(PROFILES)}, not {profile!r}")
    unique = collapse(operations)

    def figures(other: Target) -> Figures:
        seconds = sum(_cycles(op, phase, other, profile) * count for op, count in unique) / other["clock"]
        parts = _parts(other, unique, phase)
        joules = sum(_energies(unique, other).values()) + leakage(parts) * seconds
        return seconds, joules, sum(part.area for part in parts.values())

    (latency, joules, area), parts = figures(target), _parts(target, unique, phase)
    spans = ranges(figures, target) if ranged else as_they_are((latency, joules, area))
    leak, waits, rows = leakage(parts), dict[str, float](), []
    for op, count in unique:
        seconds = _cycles(op, phase, target, profile) / target["clock"]
        energy = sum(_energies([(op, 1)], target).values()) + seconds * leak
        rows += [(op.kind, op.macs, op.bytes, seconds, energy)] * count
        unit = {"linear": "macros", "attention": "scores and values"}.get(op.kind, "vector unit")
        waits[unit] = waits.get(unit, 0.0) + seconds * count
    stored = held_bytes(unique) + sum(op.stored * count for op, count in unique if op.kind == "linear")
    macros, macro_bytes = _all_macros(unique, phase, target), _macro_bytes(target)
    return CostReport(
        target=f"{target.name} ({profile})",
        kind=target.kind,
        phase=phase.name,
        context=phase.total,
        tokens=phase.tokens,
        latency_s=latency,
        energy_j=joules,
        area_mm2=area,
        **spanned(spans),
        waits_for=shares(waits),
        by_kind=group_by_kind(rows),
        basis="modelled: published cycle counts; clock, energy and area assumed",
        notes=(
            f"{macros:,.0f} macros of {macro_bytes / 1024:.0f} KiB hold all weights and the cache at 8 bits",
            "P.V engine, vector unit, energy and area are assumptions: the publication has none of them",
            "weights are expanded from codes to 8 bits when loaded; loading reads the codes over a 32-bit bus once",
            *outlier_notes(unique, "the vector unit multiplies and adds them, a byte a lane and cycle"),
        ),
        components=components(_energies(unique, target), parts, latency),
        macs=sum(op.macs * count for op, count in unique),
        load_s=stored * 8 / target["bus_width"] / target["clock"],
    )


def _energies(unique: Sequence[tuple[Operation, int]], target: Target) -> dict[str, float]:
    """J by part, without leakage."""
    scores = sum(_vector_work(op) * n for op, n in unique if op.kind == "attention")
    others = sum(_vector_work(op) * n for op, n in unique) - scores
    return {
        "macros": sum(op.macs * n for op, n in unique) * target["mac_energy"],
        "vector unit": others * target["vector_energy"],
        "softmax": scores * target["vector_energy"],
    }


def _parts(target: Target, unique: Sequence[tuple[Operation, int]], phase: Phase) -> dict[str, Part]:
    """All that the chip is made of."""
    macros, size = _all_macros(unique, phase, target), _macro_bytes(target)
    cells = macros * size * 8 * target["cell_area"] * 1e-6
    rest = logic(target, max(macros * target["macro_area"] - cells, 0.0))
    return {
        "macros": Part(macros * target["macro_area"], rest.leakage + macros * size * target["leakage"]),
        "vector unit": lanes(target, target["vector_lanes"], "vector_area"),
        "softmax": lanes(target, target["softmax_lanes"], "softmax_area"),
        "bus": logic(target, target["bus_width"] * target["bus_area"]),
    }


def _macro_bytes(target: Target) -> float:
    return target["macro_rows"] * target["macro_columns"] * target["weight_bits"] / 8


def _all_macros(unique: Sequence[tuple[Operation, int]], phase: Phase, target: Target) -> int:
    """Macros of matrices, of keys and values as many as are there at once, and of other stored numbers."""
    cache = math.ceil(held_values(unique, phase) / (target["macro_rows"] * target["macro_columns"]))
    held = math.ceil(held_bytes(unique) / _macro_bytes(target))
    return sum(_macros(op, target) * n for op, n in unique) + cache + held


def _vector_work(op: Operation) -> int:
    """Operations of the vector unit, and bytes that it reads of stored numbers."""
    return op.vector_ops + (0 if op.kind == "linear" else op.weight_bytes)


def _macros(op: Operation, target: Target) -> int:
    if op.kind != "linear" or op.again:
        return 0
    return math.ceil(op.columns / target["macro_rows"]) * math.ceil(op.rows / target["macro_columns"])


def _cycles(op: Operation, phase: Phase, target: Target, profile: str) -> float:
    """Cycles of one node for all tokens of the phase, nodes one after another, heads side by side."""
    if op.kind == "linear":
        return op.vectors * target["projection_cycles"]
    if op.kind == "attention":
        return float(_attention_cycles(op.keys(phase), target, profile).sum())
    return math.ceil(max(op.vector_ops, op.weight_bytes) / target["vector_lanes"])


def published_cycles() -> dict[str, float]:
    """What the RTL takes for its own shapes: scores of 2,048 keys, one projection, one key written."""
    target = load_target("attentionlego")
    return {
        "scores": 2048 * target["score_cycles_per_key"] + 1,
        "projection": target["projection_cycles"],
        "key": target["key_write_cycles"],
    }


def _attention_cycles(keys: np.ndarray, target: Target, profile: str) -> np.ndarray:
    """K and V write, scores, softmax and P.V of each query over so many keys."""
    if profile == "rtl":
        score = keys * target["score_cycles_per_key"] + 1
    else:
        score = np.ceil(keys / 64) * target["ideal_cycles_per_64_keys"]
    softmax = 2 * np.ceil(keys / target["softmax_lanes"])
    return 2 * target["key_write_cycles"] + 2 * score + softmax  # type: ignore[no-any-return]
