"""RAP's three mechanisms (arXiv 2411.14733) one by one and together, on the machine that they replace parts of.

Each mechanism is the set of constants in which the two target files differ for its sake; a variant is the baseline with
some of them taken from the proposal. All variants are priced twice: with as many arrays as the model's weights take, so
that all stay resident, and with as many as the baseline's area holds, where smaller arrays become more of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from export.contract.errors import InputError
from hw_model.estimate import price
from hw_model.graph_work.workload import Operation, Phase
from hw_model.machines.array import build
from hw_model.machines.result import CostReport
from hw_model.sizing.silicon import of_area
from targets import CHOICES, Target

MECHANISMS: Mapping[str, tuple[str, ...]] = {
    "no dequantize-quantize": ("requantize_lanes", "requantize_energy", "requantize_area"),
    "no FPU, no divider": ("softmax_lanes", "softmax_energy", "softmax_area", "vector_energy", "vector_area"),
    "low-ENOB sparse products": (
        "array", "adc_bits", "rows_active", "bits_per_cycle", "columns_per_adc", "adc_rate", "adc_area",
    ),
}  # fmt: skip
ALL = "all three"


@dataclass(frozen=True)
class Row:
    """One variant at one size."""

    variant: str
    equal: str  # "arrays" or "area": as the baseline
    arrays: int
    resident: float  # share of the weights
    area_mm2: float
    energy_j: float
    dynamic_j: float  # without leakage
    latency_s: float
    bound_by: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Density:
    """One array on its own: peak at its own operand widths, two operations a product."""

    variant: str
    tops_per_mm2: float
    tops_per_watt: float


def variants(baseline: Target, proposal: Target) -> dict[str, Target]:
    """The baseline, it with each mechanism alone, and with all. Raises InputError for targets that differ in more.

    Converter laws and all else that no mechanism names must be the same: it would be counted as theirs.
    """
    if baseline.kind != "pim" or proposal.kind != "pim":
        raise InputError("mechanisms are compared on targets of kind pim")
    named = {name for names in MECHANISMS.values() for name in names}
    others = [name for name, c in baseline.constants.items() if c.value != proposal[name] and name not in named]
    others += [n for n, choice in baseline.choices.items() if choice != proposal.choices[n] and n not in named]
    if others:
        raise InputError(f"{baseline.name} and {proposal.name} differ in {others[0]}, which is no part of a mechanism")
    found = {baseline.name: baseline}
    for mechanism, names in MECHANISMS.items():
        found[mechanism] = _with(baseline, proposal, names, mechanism)
    found[ALL] = _with(baseline, proposal, tuple(named), ALL)
    return found


def _with(baseline: Target, proposal: Target, names: Sequence[str], mechanism: str) -> Target:
    constants = {n: proposal.constants[n] if n in names else c for n, c in baseline.constants.items()}
    choices = {n: proposal.choices[n] if n in names else c for n, c in baseline.choices.items()}
    return replace(baseline, name=mechanism, constants=constants, choices=choices)


def compare(work: Sequence[Operation], phase: Phase, baseline: Target, proposal: Target) -> list[Row]:
    """Every variant at equal arrays, then at equal area. Raises InputError."""
    found = variants(baseline, proposal)
    resident = {name: target.varied({"arrays": 0}) for name, target in found.items()}
    reports = {name: price(work, phase, target, ranged=False) for name, target in resident.items()}
    area = reports[baseline.name].area_mm2 or 0.0
    rows = [_row(name, "arrays", report) for name, report in reports.items()]
    for name, target in resident.items():
        sized = of_area(work, phase, target, area * (1 + 1e-9))
        rows.append(_row(name, "area", price(work, phase, sized, ranged=False)))
    return rows


def compare_by_law(work: Sequence[Operation], phase: Phase, baseline: Target, proposal: Target) -> dict[str, list[Row]]:
    """The same under every law of the converters' energy, of which both have the same one."""
    variants(baseline, proposal)  # raises for what are no two machines of this kind
    return {
        law: compare(work, phase, baseline.varied({"adc_law": law}), proposal.varied({"adc_law": law}))
        for law in CHOICES["pim"]["adc_law"]
    }


def _row(variant: str, equal: str, report: CostReport) -> Row:
    leaks = sum(part.energy_j for part in report.components if part.name == "leakage")
    return Row(
        variant, equal, report.mapping["arrays"], report.mapping["resident_share"], report.area_mm2 or 0.0,
        report.energy_j or 0.0, (report.energy_j or 0.0) - leaks, report.latency_s, report.bound_by,
    )  # fmt: skip


def densities(baseline: Target, proposal: Target) -> list[Density]:
    """Arrays of both, to be held against published macros."""
    found = []
    for target in (baseline, proposal):
        array = build(target)
        macs = array.rows * array.outputs
        rate = 2 * macs / array.seconds * 1e-12
        found.append(Density(target.name, rate / array.area, 2e-12 * macs / sum(array.energy.values())))
    return found


# 8-bit products; hardware_reference: ISAAC's whole chip is published with 16 bits, four times the work of 8.
PUBLISHED = (
    Density("ISAAC-CE, 32 nm RRAM, chip (ISCA 2016), at 8 bits", 4 * 0.483, 4 * 0.627),
    Density("Wang, 22 nm SRAM, macro (VLSI 2022)", 2.38, 32.0),
    Density("Jia, 16 nm SRAM, chip of 25 mm2 (ISSCC 2021)", 2.95 / 25, 30.25),
)
