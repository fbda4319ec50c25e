"""What a code width of a layer costs on a target: time or energy of a decoded token, by the cost model (hw_model/).

The model's graph is made at every width before anything is quantized (hollow.py). What a layer's width adds is found
for all layers of a shape at once, since machines see them alike; what the widths together cost is priced once more.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from export.artefacts.graph import Graph
from export.contract.errors import InputError
from export.graph.spec import ModelSpec
from hw_model.estimate import open_target, price
from hw_model.graph_work.workload import Operation, Phase, operations
from toolchain.pipeline.hollow import hollow_graph
from toolchain.settings.quantize import QuantizeSettings
from toolchain.system.units import engineering

WIDTHS = range(1, 9)
STEPS = 10**7  # a budget in whole numbers, as the knapsack takes them


class Prices:
    """Costs of a model's widths on one target, in the unit of the budget: seconds or joules a token."""

    def __init__(self, config: Mapping[str, Any], spec: ModelSpec, settings: QuantizeSettings) -> None:
        """Raises InputError for an unknown target, one that prices no such model, and a budget that no width meets."""
        assert settings.cost_budget is not None and settings.budget_target is not None
        self.budget, self.unit = settings.cost_budget
        if spec.has_experts:
            raise InputError("--budget: a mixture of experts takes effective bits, no time or energy")
        self.target = open_target(settings.budget_target)
        self.phase = Phase.of("decode", min(settings.budget_context, spec.context_length))
        self.layers = spec.quantizable()
        works = {bits: self._work(config, settings.at_width(bits)) for bits in WIDTHS}
        self._fixed, self._own = works[1][""], works
        cost = {bits: self.of(dict.fromkeys(self.layers, bits)) for bits in WIDTHS}
        fitting = [bits for bits in WIDTHS if cost[bits] <= self.budget]
        if not fitting:
            least = engineering(cost[1], self.unit)
            raise InputError(f"--budget {settings.budget}: {self.target.name} takes {least} a token at one bit already")
        self.widths = [b for b in range(fitting[-1] - 1, fitting[-1] + 3) if b in WIDTHS]
        self._base = self.of(dict.fromkeys(self.layers, self.widths[0]))
        self._added = self._marginals()

    def of(self, widths: Mapping[str, int]) -> float:
        """What a token costs at these widths of all layers."""
        work = [*self._fixed, *(op for name, bits in widths.items() for op in self._own[bits][name])]
        report = price(work, self.phase, self.target, ranged=False)
        if self.unit == "s":
            return report.latency_s
        assert report.energy_j is not None
        return report.energy_j

    def steps(self, names: Sequence[str]) -> list[int]:
        """What each width adds to the narrowest for these layers together, in steps of a STEPS-th of the budget."""
        return [round(sum(self._added[name][bits] for name in names) / self.budget * STEPS) for bits in self.widths]

    @property
    def room(self) -> int:
        """Steps that are left of the budget when every layer has the narrowest width."""
        return int((self.budget - self._base) / self.budget * STEPS)

    def _work(self, config: Mapping[str, Any], settings: QuantizeSettings) -> dict[str, list[Operation]]:
        """Operations by the layer whose weights they read; "" for all others."""
        with tempfile.TemporaryDirectory() as scratch:
            graph = hollow_graph(config, settings, Path(scratch))
            owner = _owners(graph, self.layers)
            found: dict[str, list[Operation]] = {"": [], **{name: [] for name in self.layers}}
            for op in operations(graph, self.phase):
                found[owner.get(op.name, "")].append(op)
        return found

    def _marginals(self) -> dict[str, dict[int, float]]:
        kinds: dict[tuple[Any, ...], list[str]] = {}
        for name in self.layers:
            key = tuple((op.kind, op.rows, op.columns, op.macs, op.weight_bytes) for op in self._own[8][name])
            kinds.setdefault(key, []).append(name)
        narrowest = dict.fromkeys(self.layers, self.widths[0])
        added: dict[str, dict[int, float]] = {}
        for names in kinds.values():
            each = {b: (self.of({**narrowest, **dict.fromkeys(names, b)}) - self._base) / len(names)
                    for b in self.widths}  # fmt: skip
            added |= dict.fromkeys(names, each)
        return added


def _owners(graph: Graph, layers: Sequence[str]) -> dict[str, str]:
    """By node, the layer whose stored parts it reads."""
    found = {}
    names = set(layers)
    for node in graph.nodes:
        for value in node.inputs:
            parts = value.split(".")
            owner = next((".".join(parts[:n]) for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in names), None)
            if owner is not None:
                found[node.name] = owner
    return found
