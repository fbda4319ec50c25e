"""AttentionLego by its published cycle counts (arXiv 2401.11459 and its RTL).

Every weight matrix lies on 128 x 128-byte macros that all work at once, so a vector takes the same 66 cycles whatever
the matrix's size: tiles scale out in space. Scores are serial in the RTL (profile `rtl`, 9 cycles a key) though its
datapath holds the parallelism for 64 keys a cycle (profile `ideal`). The RTL ends after the softmax: the P.V engine
here mirrors the score engine and is our addition, and so are the vector unit and all energy and area figures.

Stored numbers that are no matrix (outliers, norm weights, biases, rows of tables) go to the vector unit, a byte a lane
and cycle; reading a byte is taken to cost what one of its operations costs. All but tables lie in macros, too.

With a number of macros (`macros`, on each of `chips`) that does not hold all matrices, a part stays and the rest
passes through as many macros as the largest matrix takes: its codes come over the bus in every pass, before they are
multiplied with. Chips share every matrix, as those of a pim target do (chip.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from export.contract.errors import InputError
from hw_model.graph_work.workload import Operation, Phase, held_bytes, held_values, outlier_notes
from hw_model.machines.chip import links
from hw_model.machines.parts import Part, components, lanes, leakage, logic
from hw_model.machines.pim import collapse
from hw_model.machines.ranges import Figures, as_they_are, ranges, spanned
from hw_model.machines.result import CostReport, group_by_kind, shares
from targets import Target, load_target

PROFILES = ("rtl", "ideal")


@dataclass(frozen=True)
class _Room:
    """The macros that there are, and what of the matrices stays in them."""

    macros: int  # on all chips
    chips: int
    resident: float  # share of the matrices
    working: int  # macros through which the other matrices pass

    @staticmethod
    def of(unique: Sequence[tuple[Operation, int]], phase: Phase, target: Target) -> _Room:
        """Raises InputError where not even the cache and what is no matrix fits."""
        chips = max(round(target["chips"]), 1)
        matrices = [(_macros(op, target), n) for op, n in unique if _macros(op, target)]
        needed, kept = sum(size * n for size, n in matrices), _kept_macros(unique, phase, target)
        macros = round(target["macros"]) * chips or needed + kept
        if needed + kept <= macros:
            return _Room(macros, chips, 1.0, 0)
        if macros <= kept:
            raise InputError(
                f"{target.name}: {macros:,} macros hold not even the cache and what is no matrix, which take {kept:,}; "
                "give more with --set macros= or --set chips="
            )
        working = min(max(size for size, _ in matrices), macros - kept)
        return _Room(macros, chips, (macros - kept - working) / needed, working)


def cost(operations: Sequence[Operation], phase: Phase, target: Target, profile: str, ranged: bool) -> CostReport:
    """Cost of one forward pass. Raises InputError on an unknown profile."""
    if profile not in PROFILES:
        raise InputError(f"--profile must be one of {', '.join(PROFILES)}, not {profile!r}")
    unique = collapse(operations)

    def figures(other: Target) -> Figures:
        room = _Room.of(unique, phase, other)
        seconds = sum(sum(_times(op, phase, other, profile, room).values()) * count for op, count in unique)
        parts = _parts(other, room)
        joules = sum(_energies(unique, other, room).values()) + leakage(parts) * seconds
        return seconds, joules, sum(part.area for part in parts.values())

    room = _Room.of(unique, phase, target)
    (latency, joules, area), parts = figures(target), _parts(target, room)
    spans = ranges(figures, target) if ranged else as_they_are((latency, joules, area))
    leak, waits, rows = leakage(parts), dict[str, float](), []
    for op, count in unique:
        times = _times(op, phase, target, profile, room)
        seconds = sum(times.values())
        energy = sum(_energies([(op, 1)], target, room).values()) + seconds * leak
        rows += [(op.kind, op.macs, op.bytes, seconds, energy)] * count
        for unit, waited in times.items():
            waits[unit] = waits.get(unit, 0.0) + waited * count
    stored = held_bytes(unique) + sum(op.stored * count for op, count in unique if op.kind == "linear")
    return CostReport(
        target=f"{target.name} ({profile})",
        kind=target.kind,
        phase=phase.name,
        context=phase.total,
        tokens=phase.vectors,
        latency_s=latency,
        energy_j=joules,
        area_mm2=area,
        **spanned(spans),
        waits_for=shares(waits),
        by_kind=group_by_kind(rows),
        basis="modelled: published cycle counts; clock, energy and area assumed",
        notes=(
            _held(room, _macro_bytes(target)),
            "P.V engine, vector unit, energy and area are assumptions: the publication has none of them",
            "weights are expanded from codes to 8 bits when loaded; loading reads the codes over a 32-bit bus once",
            *outlier_notes(unique, "the vector unit multiplies and adds them, a byte a lane and cycle"),
        ),
        components=components(_energies(unique, target, room), parts, latency),
        mapping={"macros": room.macros, "chips": room.chips, "resident_share": room.resident},
        memory_bytes=sum(_streamed(op, room) * count for op, count in unique),
        memory_bytes_per_s=room.chips * _bus(target) if room.resident < 1 else None,
        macs=sum(op.macs * count for op, count in unique),
        load_s=stored * 8 / target["bus_width"] / target["clock"],
    )


def _held(room: _Room, size: float) -> str:
    """What lies where, for people."""
    macros = f"{room.macros:,.0f} macros of {size / 1024:.0f} KiB"
    if room.resident == 1:
        return f"{macros} hold all weights and the cache at 8 bits"
    return f"{macros} hold the cache and {100 * room.resident:.1f} % of the matrices; the rest comes over the bus"


def _energies(unique: Sequence[tuple[Operation, int]], target: Target, room: _Room) -> dict[str, float]:
    """J by part, without leakage."""
    scores = sum(_vector_work(op) * n for op, n in unique if op.kind == "attention")
    others = sum(_vector_work(op) * n for op, n in unique) - scores
    written = sum(op.rows * op.columns * n for op, n in unique if op.kind == "linear") * (1 - room.resident)
    linked = sum(op.vectors * op.rows * n for op, n in unique if op.kind == "linear") * (room.chips - 1)
    return {
        "macros": sum(op.macs * n for op, n in unique) * target["mac_energy"],
        "DRAM": sum(_streamed(op, room) * n for op, n in unique) * target["dram_energy"],
        "macro writes": written * target["weight_bits"] / 8 * target["write_energy"],
        "links": linked * target["link_energy"],
        "vector unit": others * target["vector_energy"],
        "softmax": scores * target["vector_energy"],
    }


def _parts(target: Target, room: _Room) -> dict[str, Part]:
    """All that the chips are made of. What is loaded once leaves its DRAM switched off."""
    macros, chips, size = room.macros, room.chips, _macro_bytes(target)
    idle = chips * _bus(target) * target["dram_idle"] if room.resident < 1 else 0.0
    cells = macros * size * 8 * target["cell_area"] * 1e-6
    rest = logic(target, max(macros * target["macro_area"] - cells, 0.0))
    return {
        "macros": Part(macros * target["macro_area"], rest.leakage + macros * size * target["leakage"]),
        "vector unit": lanes(target, chips * target["vector_lanes"], "vector_area"),
        "softmax": lanes(target, chips * target["softmax_lanes"], "softmax_area"),
        "bus": logic(target, chips * target["bus_width"] * target["bus_area"]),
        "DRAM": Part(0.0, idle),
        **links(target, chips),
    }


def _bus(target: Target) -> float:
    """Bytes a second of one chip's bus."""
    return target["bus_width"] / 8 * target["clock"]


def _streamed(op: Operation, room: _Room) -> float:
    """Bytes that come over the bus in a pass."""
    return op.weight_bytes * (1 - room.resident) if op.kind == "linear" else 0.0


def _macro_bytes(target: Target) -> float:
    return target["macro_rows"] * target["macro_columns"] * target["weight_bits"] / 8


def _kept_macros(unique: Sequence[tuple[Operation, int]], phase: Phase, target: Target) -> int:
    """Macros of keys and values, as many as are there at once, and of stored numbers that are no matrix."""
    cache = math.ceil(held_values(unique, phase) / (target["macro_rows"] * target["macro_columns"]))
    held = math.ceil(held_bytes(unique) / _macro_bytes(target))
    return cache + held


def _vector_work(op: Operation) -> int:
    """Operations of the vector unit, and bytes that it reads of stored numbers."""
    return op.vector_ops + (0 if op.kind == "linear" else op.weight_bytes)


def _macros(op: Operation, target: Target) -> int:
    if op.kind != "linear" or op.again:
        return 0
    return math.ceil(op.columns / target["macro_rows"]) * math.ceil(op.rows / target["macro_columns"])


def _times(op: Operation, phase: Phase, target: Target, profile: str, room: _Room) -> dict[str, float]:
    """Seconds of one node by what is waited for."""
    seconds = _cycles(op, phase, target, profile) / target["clock"]
    if op.kind != "linear":
        unit = "scores and values" if op.kind == "attention" else "vector unit"
        return {unit: seconds / (room.chips if unit == "vector unit" else 1)}
    tiles = math.ceil(op.columns / target["macro_rows"]) * math.ceil(op.rows / target["macro_columns"])
    waves = max(math.ceil(tiles * (1 - room.resident) / room.working), 1) if room.resident < 1 else 1
    gathered = op.vectors * op.rows * (room.chips - 1) / room.chips
    return {
        "macros": seconds * waves,
        "bus": _streamed(op, room) / room.chips / _bus(target),
        "links": gathered / target["link_bandwidth"] if gathered else 0.0,
    }


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
