"""Processing in memory, weight-stationary: matrices lie in arrays, tokens pass through, what does not fit is reloaded.

A matrix takes ceil(K / rows) x ceil(N / outputs) arrays that all work at once, so its product takes one array's time
whatever its size; layers that share a matrix share its arrays. Scores and values use a MAC engine beside the key-value
memory, norms and activations a vector unit; each product's outputs are requantized, but where the graph makes codes
itself. mapping.py chooses what stays resident and how the rest is loaded.

Keys and values are read once for all tokens of a pass, as the graph's work has it; where tokens follow one another
through the layers, each reads them on its own. Sequences that are computed together are tokens of a pass; weights
are read once for all. Outliers are multiplied and added by the vector unit; they, norm weights
and biases lie in SRAM as far as they fit, else in DRAM, and the cache gets the rest of the SRAM.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hw_model.graph_work.workload import Operation, Phase, held_bytes, held_values, outlier_notes
from hw_model.machines.array import build
from hw_model.machines.chip import Sharing, parts, together
from hw_model.machines.mapping import Mapping, candidates, describe
from hw_model.machines.parts import components, leakage
from hw_model.machines.ranges import Figures, Range, as_they_are, ranges, spanned
from hw_model.machines.result import CostReport, group_by_kind, shares
from targets import Target


@dataclass(frozen=True)
class _Work:
    """One kind of operation with how often it occurs, and its cost under a mapping."""

    operation: Operation
    count: int
    times: dict[str, float]  # seconds by the part that is waited for; together those of the operation
    energy: dict[str, float]
    busy: dict[str, float]  # seconds that it keeps each shared part of the chip busy

    @property
    def seconds(self) -> float:
        return sum(self.times.values())


@dataclass(frozen=True)
class _Pass:
    """One forward pass under a mapping."""

    works: list[_Work]
    latency: float  # s
    waits: dict[str, float]  # s by the part that is waited for; together the latency
    dynamic: float  # J without leakage


def cost(operations: Sequence[Operation], phase: Phase, target: Target, objective: str, ranged: bool) -> CostReport:
    """Cost of one forward pass under the mapping that is best for `objective`: latency, energy or edp."""
    unique = collapse(operations)
    chip = _Chip(target, unique, phase)
    # every token of an encoder's layer waits for all tokens of the layer before
    follow = phase.vectors > 1 and all(op.causal for op, _ in unique)
    options = candidates(chip.needed, chip.arrays, phase.vectors > 1, follow)
    found = [(mapping, chip.evaluate(mapping)) for mapping in options]
    score = {
        "latency": lambda f: f[1].latency,
        "energy": lambda f: chip.energy(f[1]),
        "edp": lambda f: f[1].latency * chip.energy(f[1]),
    }[objective]
    mapping, best = min(found, key=score)

    def figures(other: Target) -> Figures:
        changed = _Chip(other, unique, phase)
        done = changed.evaluate(mapping)
        return done.latency, changed.energy(done), changed.area

    spans = ranges(figures, target) if ranged else as_they_are((best.latency, chip.energy(best), chip.area))
    return chip.report(mapping, best, spans, objective)


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

    def __init__(self, target: Target, unique: list[tuple[Operation, int]], phase: Phase) -> None:
        self.sharing = Sharing.of(target)
        target = together(target, self.sharing)
        self.target, self.array, self.unique, self.phase = target, build(target), unique, phase
        self.matrices = [(op, n) for op, n in unique if op.kind == "linear" and not op.again]
        self.needed = sum(self.array.tiles(op.rows, op.columns) * n for op, n in self.matrices)
        self.arrays = round(target["arrays"]) or self.needed
        cache = held_values(unique, phase) * target["cache_bits"] / 8
        held = held_bytes(unique)
        self.held_on_chip = min(target["cache_capacity"] / held, 1.0) if held else 1.0
        self.held_inside = held * self.held_on_chip
        self.cache_on_chip = min((target["cache_capacity"] - self.held_inside) / cache, 1.0) if cache else 1.0
        self.parts = parts(target, self.sharing, self.array, self.arrays)
        self.leakage = leakage(self.parts)
        self.area = sum(part.area for part in self.parts.values())

    def evaluate(self, mapping: Mapping) -> _Pass:
        """Cost of every kind of operation, and the latency of the pass."""
        works = [_Work(op, n, *self._operation(op, mapping)) for op, n in self.unique]
        waits: dict[str, float] = {}
        for work in works:
            for name, seconds in work.times.items():
                waits[name] = waits.get(name, 0.0) + seconds * work.count
        serial, dynamic = sum(waits.values()), sum(sum(work.energy.values()) * work.count for work in works)
        if mapping.pipelined:
            follow = self._following(works)
            rounds = math.ceil(self.phase.vectors / mapping.copies)  # tokens that pass an array one by one
            first = {n: s / (rounds if n == "arrays" else self.phase.vectors) for n, s in waits.items()}
            if sum(first.values()) + sum(follow.values()) < serial:
                waits = first
                for name, seconds in follow.items():
                    waits[name] = waits.get(name, 0.0) + seconds
        return _Pass(works, sum(waits.values()), waits, dynamic)

    def _following(self, works: list[_Work]) -> dict[str, float]:
        """Seconds of all tokens but the first where they follow one another, by the part that paces them.

        The slowest stage paces. A matrix is a stage of its own; the network, the vector unit and the other shared
        parts serve every layer.
        """
        shared: dict[str, float] = {}
        for work in works:
            for name, value in work.busy.items():
                if name == "arrays":
                    shared[name] = max(shared.get(name, 0.0), value * work.operation.uses)
                else:
                    shared[name] = shared.get(name, 0.0) + value * work.count
        slowest, busy = max(shared.items(), key=lambda pair: pair[1], default=("arrays", 0.0))
        pace = np.full(self.phase.vectors, busy / self.phase.vectors)
        attention = [(w.operation, w.count) for w in works if w.operation.kind == "attention"]
        own = np.zeros(self.phase.vectors)
        for op, count in attention:
            own += self._attention_pace(op) * count
        slower = (own > pace)[1:]
        found = {slowest: float(pace[1:][~slower].sum())}
        if slower.any():
            found["attention engine"] = found.get("attention engine", 0.0) + float(own[1:][slower].sum())
        return found

    def energy(self, done: _Pass) -> float:
        """J of the pass, leakage included."""
        return done.dynamic + done.latency * self.leakage

    def _operation(
        self, op: Operation, mapping: Mapping
    ) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
        """(seconds by what is waited for, J by part, seconds that shared parts are busy)."""
        if op.kind == "linear":
            return self._linear(op, mapping)
        target = self.target
        # rows of a table lie in DRAM; other stored numbers are read from SRAM as far as they fit
        inside = 0.0 if op.kind == "embedding" else op.weight_bytes * self.held_on_chip
        moved, outside = op.activation_bytes / 4 + inside, op.weight_bytes - inside  # one byte a value
        requantize = op.quantized / target["requantize_lanes"] / target["clock"]
        energy = {"requantization": op.quantized * target["requantize_energy"]}
        if op.kind == "attention":
            times, cache, more = self._attention(op, mapping.pipelined)
            energy |= more
        else:
            times = {"vector unit": op.other_ops / target["vector_lanes"] / target["clock"]}
            energy["vector unit"] = op.other_ops * target["vector_energy"]
            cache = (op.cache_values + op.new_values) * target["cache_bits"] / 8
            outside += cache * (1 - self.cache_on_chip)
        energy["SRAM"] = (moved + cache * self.cache_on_chip) * target["sram_energy"]
        energy["DRAM"] = energy.get("DRAM", 0.0) + outside * target["dram_energy"]
        times["DRAM"] = times.get("DRAM", 0.0) + outside / target["dram_bandwidth"]
        times["requantization"] = requantize
        return times, energy, {} if op.kind == "attention" else dict(times)

    def _linear(self, op: Operation, mapping: Mapping) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
        target, array = self.target, self.array
        made = 0 if op.coded else op.vectors * op.rows  # outputs to be requantized
        busiest, moved = self.sharing.network_bytes(op.vectors, op.rows, op.columns, array)
        network = busiest / target["network_bandwidth"]
        received, linked = self.sharing.link_bytes(op.vectors, op.rows)
        links = received / target["link_bandwidth"] if linked else 0.0
        requantize = made / target["requantize_lanes"] / target["clock"]
        times = {"arrays": math.ceil(op.vectors / mapping.copies) * array.seconds}
        energy = array.energy_of(op.macs)
        energy["network"] = moved * target["network_energy"]
        energy["requantization"] = made * target["requantize_energy"]
        energy["links"] = linked * target["link_energy"]
        spilled = 1.0 - mapping.resident_share
        if spilled > 0:
            bits, weights = target["transfer_bits"], op.rows * op.columns
            size = (weights * bits / 8 if bits else op.weight_bytes) * spilled
            held = weights * target["weight_bits"] / 8 * spilled
            times = self._reloaded(times["arrays"], array.tiles(op.rows, op.columns) * spilled, size, held, mapping)
            energy["DRAM"] = size * target["dram_energy"]
            energy["array writes"] = held * target["write_energy"]
        compute = sum(times.values())
        if network > compute:
            times = {"network": network}
        busy = {"arrays": compute, "network": network, "requantization": requantize, "links": links}
        return {**times, "requantization": requantize, "links": links}, energy, busy

    def _reloaded(self, compute: float, tiles: float, size: float, held: float, mapping: Mapping) -> dict[str, float]:
        """Seconds of a product whose matrix passes through the working arrays, by what is waited for."""
        read, written = size / self.target["dram_bandwidth"], held / self.target["write_bandwidth"]
        loader, load = max(("DRAM", read), ("array writes", written), key=lambda pair: pair[1])
        waves = max(math.ceil(tiles / max(mapping.working // mapping.buffers, 1)), 1)
        work = waves * compute
        if mapping.buffers == 1:
            return {loader: load, "arrays": work}
        first, rest = load / waves, load * (waves - 1) / waves
        return {loader: first + rest} if rest > work else {loader: first, "arrays": work}

    def _attention_pace(self, op: Operation) -> np.ndarray:
        """Seconds of each query in one layer where every query reads keys and values on its own."""
        target, keys = self.target, op.keys(self.phase)
        engine = 2 * keys * op.heads * op.head_dim / target["attention_macs"] / target["clock"]
        moved = (2 * keys + 2) * op.kv_heads * op.head_dim * target["cache_bits"] / 8
        outside = moved * (1 - self.cache_on_chip) / target["dram_bandwidth"]
        softmax = keys * op.heads / target["softmax_lanes"] / target["clock"]
        return np.maximum(engine, outside) + softmax

    def _attention(self, op: Operation, pipelined: bool) -> tuple[dict[str, float], float, dict[str, float]]:
        """(seconds by what is waited for, bytes of keys and values that move, J by part)."""
        target = self.target
        engine = op.macs / target["attention_macs"] / target["clock"]
        read = 2 * op.pairs * op.kv_heads * op.head_dim if pipelined else op.cache_values
        moved = (read + op.new_values) * target["cache_bits"] / 8
        outside = moved * (1 - self.cache_on_chip)
        energy = {
            "attention engine": op.macs * target["attention_energy"],
            "softmax": op.pairs * op.heads * target["softmax_energy"],
            "DRAM": outside * target["dram_energy"],
        }
        waited, seconds = max(
            ("attention engine", engine), ("DRAM", outside / target["dram_bandwidth"]), key=lambda pair: pair[1]
        )
        softmax = op.pairs * op.heads / target["softmax_lanes"] / target["clock"]
        return {waited: seconds, "softmax": softmax}, moved, energy

    def report(self, mapping: Mapping, done: _Pass, spans: tuple[Range, Range, Range], objective: str) -> CostReport:
        """The finished report."""
        target, array, phase, latency = self.target, self.array, self.phase, done.latency
        serial = sum(w.seconds * w.count for w in done.works)
        leak = latency * self.leakage
        rows = []
        energies: dict[str, float] = {}
        for work in done.works:
            op = work.operation
            seconds = work.seconds * latency / serial
            joule = sum(work.energy.values()) + leak * seconds / latency
            rows += [(op.kind, op.macs, op.bytes, seconds, joule)] * work.count
            for name, value in work.energy.items():
                energies[name] = energies.get(name, 0.0) + value * work.count
        stored = sum(op.rows * op.columns * n for op, n in self.matrices)
        weights = stored / max(self.needed * array.rows * array.outputs, 1)
        loads = stored * target["weight_bits"] / 8 * mapping.resident_share * mapping.copies
        outside = (energies.get("DRAM", 0.0) / target["dram_energy"]) if target["dram_energy"] else 0.0
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
            target=target.name, kind=target.kind, phase=phase.name, context=phase.total, tokens=phase.vectors,
            latency_s=latency, energy_j=sum(row[4] for row in rows),
            area_mm2=self.area, by_kind=group_by_kind(rows), **spanned(spans), waits_for=shares(done.waits),
            basis=f"modelled: {target.choices['array']} arrays from published equations and stated assumptions",
            notes=tuple(notes),
            load_s=loads / target["write_bandwidth"] + self.held_inside / target["dram_bandwidth"],
            components=components(energies, self.parts, latency),
            mapping={
                **mapping.to_json(), "objective": objective, "lossless": array.lossless,
                "arrays_needed": self.needed, "arrays": self.arrays, "tiles": self.sharing.tiles,
                "chips": self.sharing.chips,
            },
            peak_macs_per_s=peak, memory_bytes_per_s=target["dram_bandwidth"], memory_bytes=outside,
            macs=sum(op.macs * n for op, n in self.unique),
        )  # fmt: skip
