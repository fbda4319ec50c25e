"""Processing in memory, weight-stationary: matrices lie in arrays, tokens pass through, what does not fit is reloaded.

A matrix takes ceil(K / rows) x ceil(N / outputs) arrays that all work at once, so its product takes one array's time
whatever its size. Scores and values use a MAC engine beside the key-value memory, norms and activations a vector unit;
each product's outputs are requantized. mapping.py chooses what stays resident and how the rest is loaded.

Outliers are multiplied and added by the vector unit; they, norm weights and biases lie in SRAM as far as they fit, else
in DRAM, and the cache gets the rest of the SRAM.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hw_model.graph_work.workload import Operation, Phase, held_bytes, outlier_notes
from hw_model.machines.array import Array, build
from hw_model.machines.mapping import Mapping, candidates, describe
from hw_model.machines.result import ComponentCost, CostReport, group_by_kind
from targets import Target

_SPAN = ("clock", "dram_bandwidth", "network_bandwidth", "write_bandwidth")


@dataclass(frozen=True)
class _Work:
    """One kind of operation with how often it occurs, and its cost under a mapping."""

    operation: Operation
    count: int
    seconds: float
    energy: dict[str, float]
    busy: dict[str, float]  # seconds that it keeps each shared part of the chip busy


def cost(operations: Sequence[Operation], phase: Phase, target: Target, objective: str) -> CostReport:
    """Cost of one forward pass under the mapping that is best for `objective`: latency, energy or edp."""
    unique = collapse(operations)
    array = build(target)
    chip = _Chip(target, array, unique, phase)
    found = [(mapping, *chip.evaluate(mapping)) for mapping in candidates(chip.needed, chip.arrays, phase.tokens > 1)]
    score = {
        "latency": lambda f: f[2],
        "energy": lambda f: chip.total_energy(f[1], f[2]),
        "edp": lambda f: f[2] * chip.total_energy(f[1], f[2]),
    }[objective]
    mapping, works, latency = min(found, key=score)
    spans = []
    for side in ("low", "high"):
        other = target.extreme(side, _SPAN)
        spans.append(_Chip(other, build(other), unique, phase).evaluate(mapping)[1])
    return chip.report(mapping, works, latency, (min(*spans, latency), max(*spans, latency)), objective)


def collapse(operations: Sequence[Operation]) -> list[tuple[Operation, int]]:
    """Operations that differ in nothing but their name, counted: a model repeats one block many times."""
    counts: dict[tuple[object, ...], int] = {}
    first: dict[tuple[object, ...], Operation] = {}
    for op in operations:
        key = tuple(value for name, value in vars(op).items() if name != "name")
        counts[key] = counts.get(key, 0) + 1
        first.setdefault(key, op)
    return [(first[key], count) for key, count in counts.items()]


class _Chip:
    """One target with one model's work on it."""

    def __init__(self, target: Target, array: Array, unique: list[tuple[Operation, int]], phase: Phase) -> None:
        self.target, self.array, self.unique, self.phase = target, array, unique, phase
        self.needed = sum(array.tiles(op.rows, op.columns) * n for op, n in unique if op.kind == "linear")
        self.arrays = round(target["arrays"]) or self.needed
        heads = sum(op.kv_heads * op.head_dim * n for op, n in unique if op.kind == "attention")
        self.cache_bytes = 2 * phase.total * heads * target["cache_bits"] / 8
        self.held = held_bytes(unique)
        self.held_on_chip = min(target["cache_capacity"] / self.held, 1.0) if self.held else 1.0
        left = target["cache_capacity"] - self.held * self.held_on_chip
        self.cache_on_chip = min(left / self.cache_bytes, 1.0) if self.cache_bytes else 1.0

    def evaluate(self, mapping: Mapping) -> tuple[list[_Work], float]:
        """(cost of every kind of operation, latency of the pass in seconds)."""
        works = [_Work(op, n, *self._operation(op, mapping)) for op, n in self.unique]
        serial = sum(work.seconds * work.count for work in works)
        if not mapping.pipelined:
            return works, serial
        # Tokens follow one another through the layers: the first takes the whole way, then the slowest stage paces. A
        # matrix is a stage of its own; the network, the vector unit and the other shared parts serve every layer.
        tokens = self.phase.tokens
        shared: dict[str, float] = {}
        for work in works:
            for name, value in work.busy.items():
                if name == "arrays":
                    shared[name] = max(shared.get(name, 0.0), value)
                else:
                    shared[name] = shared.get(name, 0.0) + value * work.count
        keys = np.arange(1, tokens + 1) + self.phase.past
        pace = np.full(tokens, max(shared.values(), default=0.0) / tokens)
        attention = [(w.operation, w.count) for w in works if w.operation.kind == "attention"]
        if attention:
            pace = np.maximum(pace, sum(self._attention_seconds(op, keys) * n for op, n in attention))
        return works, min(serial / tokens + float(pace[1:].sum()), serial)

    def total_energy(self, works: list[_Work], latency: float) -> float:
        """J of the pass, leakage included."""
        return sum(sum(w.energy.values()) * w.count for w in works) + latency * self._leakage()

    def _leakage(self) -> float:
        stored = self.arrays * self.array.bytes + self.target["cache_capacity"]
        return self.target["leakage"] * stored

    def _operation(self, op: Operation, mapping: Mapping) -> tuple[float, dict[str, float], dict[str, float]]:
        target = self.target
        if op.kind == "linear":
            return self._linear(op, mapping)
        if op.kind == "attention":
            return (*self._attention(op), {})
        seconds = op.vector_ops / target["vector_lanes"] / target["clock"]
        energy = {"vector unit": op.vector_ops * target["vector_energy"]}
        # rows of a table lie in DRAM; other stored numbers are read from SRAM as far as they fit
        inside = 0.0 if op.kind == "embedding" else op.weight_bytes * self.held_on_chip
        outside = op.weight_bytes - inside
        if outside:
            seconds += outside / target["dram_bandwidth"]
            energy["DRAM"] = outside * target["dram_energy"]
        if op.kind != "embedding":
            energy["SRAM"] = (op.activation_bytes / 4 + inside) * target["sram_energy"]  # one byte a value
        return seconds, energy, {"vector unit": seconds}

    def _linear(self, op: Operation, mapping: Mapping) -> tuple[float, dict[str, float], dict[str, float]]:
        target, array, tokens = self.target, self.array, self.phase.tokens
        tiles = array.tiles(op.rows, op.columns)
        moved = tokens * (op.columns * math.ceil(op.rows / array.outputs) + op.rows)  # bytes to and from the arrays
        network = moved / target["network_bandwidth"]
        requantize = tokens * op.rows / target["requantize_lanes"] / target["clock"]
        compute = tokens * array.seconds / mapping.copies
        used = op.rows * op.columns / (tiles * array.rows * array.outputs)
        energy = {name: value * tiles * tokens * used for name, value in array.energy.items()}
        energy["network"] = moved * target["network_energy"]
        energy["requantization"] = tokens * op.rows * target["requantize_energy"]
        spilled = 1.0 - mapping.resident_share
        if spilled > 0:
            bits = target["transfer_bits"] or op.weight_bits
            size = op.rows * op.columns * bits / 8 * spilled
            held = op.rows * op.columns * target["weight_bits"] / 8 * spilled
            load = max(size / target["dram_bandwidth"], held / target["write_bandwidth"])
            waves = max(math.ceil(tiles * spilled / max(mapping.working // mapping.buffers, 1)), 1)
            work = waves * compute
            compute = (load / waves + max(load * (waves - 1) / waves, work)) if mapping.buffers > 1 else load + work
            energy["DRAM"] = size * target["dram_energy"]
            energy["array writes"] = held * target["write_energy"]
        busy = {"arrays": compute, "network": network, "requantization": requantize}
        return max(compute, network) + requantize, energy, busy

    def _attention_seconds(self, op: Operation, keys: np.ndarray) -> np.ndarray:
        """Seconds of one query over `keys` keys in one layer."""
        target = self.target
        engine = 2 * keys * op.heads * op.head_dim / target["attention_macs"] / target["clock"]
        read = 2 * keys * op.kv_heads * op.head_dim * target["cache_bits"] / 8
        dram = read * (1 - self.cache_on_chip) / target["dram_bandwidth"]
        softmax = keys * op.heads / target["softmax_lanes"] / target["clock"]
        return np.maximum(engine, dram) + softmax

    def _attention(self, op: Operation) -> tuple[float, dict[str, float]]:
        target, phase = self.target, self.phase
        keys = np.arange(1, phase.tokens + 1) + phase.past
        seconds = float(self._attention_seconds(op, keys).sum())
        pairs = float(keys.sum())
        read = 2 * pairs * op.kv_heads * op.head_dim * target["cache_bits"] / 8
        energy = {
            "attention engine": 2 * pairs * op.heads * op.head_dim * target["attention_energy"],
            "softmax": pairs * op.heads * target["softmax_energy"],
            "SRAM": read * self.cache_on_chip * target["sram_energy"],
            "DRAM": read * (1 - self.cache_on_chip) * target["dram_energy"],
        }
        return seconds, energy

    def report(
        self, mapping: Mapping, works: list[_Work], latency: float, span: tuple[float, float], objective: str
    ) -> CostReport:
        """The finished report."""
        target, array, phase = self.target, self.array, self.phase
        serial = sum(w.seconds * w.count for w in works)
        leak = latency * self._leakage()
        rows = []
        for work in works:
            op = work.operation
            seconds = work.seconds * latency / serial
            joule = sum(work.energy.values()) + leak * seconds / latency
            rows += [(op.kind, op.macs, op.bytes, seconds, joule)] * work.count
        parts: dict[str, float] = {"leakage": leak}
        for work in works:
            for name, value in work.energy.items():
                parts[name] = parts.get(name, 0.0) + value * work.count
        area = {"arrays": self.arrays * array.area, "SRAM": target["cache_capacity"] * target["sram_area"]}
        components = [ComponentCost(name, energy, area.get(name, 0.0)) for name, energy in parts.items()]
        components += [ComponentCost(name, 0.0, value) for name, value in area.items() if name not in parts]
        stored = sum(op.rows * op.columns * n for op, n in self.unique if op.kind == "linear")
        weights = stored / max(self.needed * array.rows * array.outputs, 1)
        loads = stored * target["weight_bits"] / 8 * mapping.resident_share * mapping.copies
        dram = (parts.get("DRAM", 0.0) / target["dram_energy"]) if target["dram_energy"] else 0.0
        notes = [
            describe(mapping, self.needed, self.arrays),
            f"{100 * weights:.0f} % of the cells of used arrays hold weights",
        ]
        if not array.lossless:
            notes.append("the converters have fewer bits than the sums: accuracy is lost, see eval --emulate")
        if self.cache_on_chip < 1:
            notes.append(
                f"{100 * self.cache_on_chip:.0f} % of the key-value cache fits on the chip, the rest is in DRAM"
            )
        where = (
            f"the vector unit multiplies and adds them, {100 * self.held_on_chip:.0f} % lie in SRAM beside the cache"
        )
        notes += outlier_notes(self.unique, where)
        peak = self.arrays * array.rows * array.outputs / array.seconds
        return CostReport(
            target=target.name, kind=target.kind, phase=phase.name, context=phase.total, tokens=phase.tokens,
            latency_s=latency, energy_j=sum(row[4] for row in rows), area_mm2=sum(area.values()),
            latency_low_s=span[0], latency_high_s=span[1], by_kind=group_by_kind(rows),
            basis=f"modelled: {target.choices['array']} arrays from published equations and stated assumptions",
            notes=tuple(notes),
            load_s=loads / target["write_bandwidth"] + self.held * self.held_on_chip / target["dram_bandwidth"],
            components=tuple(sorted(components, key=lambda c: -c.energy_j)),
            mapping={
                **mapping.to_json(), "objective": objective, "lossless": array.lossless,
                "arrays_needed": self.needed, "arrays": self.arrays,
            },
            peak_macs_per_s=peak, memory_bytes_per_s=target["dram_bandwidth"], memory_bytes=dram,
            macs=sum(op.macs * n for op, n in self.unique),
        )  # fmt: skip
