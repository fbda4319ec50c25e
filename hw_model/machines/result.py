"""The cost of one phase on one target, and how it is put together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class KindCost:
    """Latency and energy of all nodes of one operator kind."""

    kind: str
    nodes: int
    macs: int
    bytes: int
    latency_s: float
    energy_j: float | None


@dataclass(frozen=True)
class ComponentCost:
    """Energy and area of one hardware part over the whole phase.

    Energy is what it takes while it works; that of all parts at rest is a component of its own, `leakage`.
    """

    name: str
    energy_j: float
    area_mm2: float
    leakage_w: float = 0.0


@dataclass(frozen=True)
class CostReport:
    """One phase of one model on one target. None where the target has no such figure."""

    target: str
    kind: str
    phase: str
    context: int
    tokens: int  # tokens processed in the phase
    latency_s: float
    energy_j: float | None
    area_mm2: float | None
    latency_low_s: float  # span over the assumptions' stated ranges, as the next ones
    latency_high_s: float
    by_kind: tuple[KindCost, ...]
    basis: str  # modelled, and from what
    notes: tuple[str, ...] = ()
    load_s: float | None = None  # writing the weights into the arrays, once
    components: tuple[ComponentCost, ...] = ()
    mapping: dict[str, Any] = field(default_factory=dict)  # what the mapper chose, for people
    peak_macs_per_s: float | None = None  # roof of a roofline
    memory_bytes_per_s: float | None = None  # slope of a roofline: of the memory that holds what does not fit
    memory_bytes: float = 0.0  # read through that slope in this phase
    macs: int = 0
    energy_low_j: float | None = None
    energy_high_j: float | None = None
    area_low_mm2: float | None = None
    area_high_mm2: float | None = None
    turns_on: dict[str, str] = field(default_factory=dict)  # figure: the assumption that moves it most
    waits_for: dict[str, float] = field(default_factory=dict)  # part: share of the latency, the largest first

    @property
    def bound_by(self) -> str:
        """What is waited for most, with its share: "network 98 %"."""
        return next((f"{name} {100 * share:.0f} %" for name, share in self.waits_for.items()), "")

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.latency_s

    @property
    def energy_delay(self) -> float | None:
        """Energy-delay product per token, J s."""
        return None if self.energy_j is None else self.energy_j * self.latency_s / self.tokens**2

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "tokens_per_s": self.tokens_per_s, "bound_by": self.bound_by}


def shares(waits: Mapping[str, float]) -> dict[str, float]:
    """Seconds by part as shares of all, the largest first; nothing that is waited for less than a thousandth."""
    total = sum(waits.values()) or 1.0
    found = sorted(((name, seconds / total) for name, seconds in waits.items()), key=lambda pair: -pair[1])
    return {name: share for name, share in found if share >= 1e-3}


def group_by_kind(costs: Iterable[tuple[str, int, int, float, float | None]]) -> tuple[KindCost, ...]:
    """Sum (kind, macs, bytes, latency, energy) rows per kind, longest latency first."""
    groups: dict[str, list[tuple[int, int, float, float | None]]] = {}
    for kind, macs, size, latency, energy in costs:
        groups.setdefault(kind, []).append((macs, size, latency, energy))
    kinds = []
    for kind, rows in groups.items():
        energies = [r[3] for r in rows if r[3] is not None]
        kinds.append(
            KindCost(
                kind,
                len(rows),
                sum(r[0] for r in rows),
                sum(r[1] for r in rows),
                sum(r[2] for r in rows),
                sum(energies) if energies else None,
            )
        )
    return tuple(sorted(kinds, key=lambda k: -k.latency_s))
