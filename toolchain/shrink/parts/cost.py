"""What a token takes on a target at any sizes: the cost model over a graph of one layer of each kind.

The graphs are those of an export at one width of codes, made without weights (pipeline/hollow.py). Layers of one kind
have the same operations, so one stands for all of them; `pytest tests/toolchain/shrink/test_cost.py` compares with the
graph of the whole model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from export.contract.errors import InputError
from export.graph.spec import ModelSpec
from hw_model.estimate import open_target, price
from hw_model.graph_work.workload import Operation, Phase, operations
from hw_model.machines.result import CostReport
from toolchain.pipeline.hollow import hollow_graph
from toolchain.settings.quantize import QuantizeSettings
from toolchain.settings.shrinking.shrink import BudgetSettings
from toolchain.shrink.parts.cut import Sizes
from toolchain.shrink.parts.family import Freedom

_FIRST = "/model/layers.0/"


class TokenCosts:
    """Prices of a decoded token, by sizes; each graph is made once."""

    def __init__(self, freedom: Freedom, spec: ModelSpec, settings: BudgetSettings) -> None:
        """Raises InputError for an unknown target, or one that prices no such model."""
        self._freedom, self._spec = freedom, spec
        self.target = open_target(settings.target)
        self.phase = Phase.of("decode", min(settings.priced_context, spec.context_length))
        self.bits = settings.priced_bits
        self._quantization = QuantizeSettings(bits=settings.priced_bits, passes=1)
        self._works: dict[tuple[int, Sizes], tuple[list[Operation], list[Operation]]] = {}
        self._reports: dict[tuple[Sizes, tuple[int, ...]], CostReport] = {}

    def of(self, sizes: Sizes, unit: str, layers: Sequence[int] | None = None) -> float:
        """Seconds ("s") or joules ("J") of a token; layers: as of report(), the first ones where they are not given."""
        report = self.report(sizes, range(sizes.layers) if layers is None else layers)
        if unit == "s":
            return report.latency_s
        if report.energy_j is None:
            raise InputError(f"{self.target.name} has no energy; give --latency")
        return report.energy_j

    def report(self, sizes: Sizes, layers: Sequence[int]) -> CostReport:
        """The price of a token with these layers of the source at these sizes."""
        kinds = tuple(self._kind(layer) for layer in layers)
        if (sizes, kinds) not in self._reports:
            inner: list[Operation] = []
            outer: dict[str, Operation] = {}  # each kind of layer has its mask
            for place, kind in enumerate(kinds):
                outside, inside = self._work(kind, replace(sizes, layers=1))
                inner += [replace(op, name=op.name.replace(_FIRST, f"/model/layers.{place}/", 1)) for op in inside]
                outer |= {op.name: op for op in outside}
            self._reports[sizes, kinds] = self._price([*inner, *outer.values()])
        return self._reports[sizes, kinds]

    def of_config(self, config: Mapping[str, Any]) -> CostReport:
        """The price of a token of a whole model, by its resolved config."""
        return self._price(self._operations(config))

    def _price(self, work: list[Operation]) -> CostReport:
        return price(work, self.phase, self.target, ranged=False)

    def _operations(self, config: Mapping[str, Any]) -> list[Operation]:
        with tempfile.TemporaryDirectory() as scratch:
            return operations(hollow_graph(config, self._quantization, Path(scratch)), self.phase)

    def _kind(self, layer: int) -> int:
        """The first layer that is like this one."""
        spec = self._spec
        windows, unturned = spec.sliding_window, spec.layers_without_rope
        like = [(windows[n] if windows else None, n in unturned) for n in range(layer + 1)]
        return like.index(like[layer])

    def _work(self, layer: int, sizes: Sizes) -> tuple[list[Operation], list[Operation]]:
        """Operations outside of the layers, and of one layer alone that is like `layer`."""
        if (layer, sizes) not in self._works:
            found = self._operations(self._freedom.config(sizes, (layer,)))
            inside = [op for op in found if op.name.startswith(_FIRST)]
            self._works[layer, sizes] = [op for op in found if not op.name.startswith(_FIRST)], inside
        return self._works[layer, sizes]
