"""Low, high and bottleneck of every report, and the assumption on which a ranking turns."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw_model.estimate import open_target, price
from hw_model.graph_work.workload import Phase
from hw_model.machines.ranges import alternatives
from hw_model.ranking import turning
from targets import Target, target_names
from tests.hw_model.test_books import ACCELERATORS, seven_billion
from tests.hw_model.test_machines import llama

DECODE = Phase.of("decode", 1024)
SMALL = llama(4, 512, 1408, 1, 1024)


def figures(report) -> dict[str, float]:
    return {"latency": report.latency_s, "energy": report.energy_j, "area": report.area_mm2 or 0.0}


def spans(report) -> dict[str, tuple[float, float]]:
    return {
        "latency": (report.latency_low_s, report.latency_high_s),
        "energy": (report.energy_low_j, report.energy_high_j),
        "area": (report.area_low_mm2 or 0.0, report.area_high_mm2 or 0.0),
    }


@pytest.mark.parametrize("phase", [DECODE, Phase.of("prefill", 48)], ids=lambda phase: phase.name)
@pytest.mark.parametrize("name", target_names())
def test_every_figure_lies_in_its_range(name, phase):
    """And so does it with any one assumption at another of its values, but for another mapping that it may ask for."""
    work, target = llama(2, 512, 1408, phase.tokens, phase.total), open_target(name)
    report = price(work, phase, target)
    found = figures(report)
    for figure, (low, high) in spans(report).items():
        assert low <= found[figure] <= high, figure
    for constant, values in alternatives(target).items():
        for value in values:
            other = figures(price(work, phase, target.varied({constant: value}), ranged=False))
            for figure, (low, high) in spans(report).items():
                assert other[figure] <= high * (1 + 1e-9) and (other[figure] >= low * (1 - 1e-9) or report.mapping), (
                    figure, constant,
                )  # fmt: skip


@pytest.mark.parametrize("name", ACCELERATORS)
def test_the_named_assumption_moves_a_figure_most(name):
    target = open_target(name)
    report = price(SMALL, DECODE, target)
    tried, turning = alternatives(target), set()
    for figure in figures(report):
        for constant, values in tried.items():
            others = [figures(price(SMALL, DECODE, target.varied({constant: value}), ranged=False)) for value in values]
            if any(other[figure] != figures(report)[figure] for other in others):
                turning.add(figure)
    for figure, named in report.turns_on.items():
        base = figures(report)[figure]
        moved = {}
        for constant, values in tried.items():
            others = (price(SMALL, DECODE, target.varied({constant: value}), ranged=False) for value in values)
            moved[constant] = max(abs(figures(other)[figure] / base - 1) for other in others)
        assert moved[named] >= 0.5 * max(moved.values()) > 0  # one side of a spread may be the wider one
    assert set(report.turns_on) == turning >= {"energy", "area"}  # rap-baseline-shared: its converters' rate is stated


def test_a_boards_range_is_that_of_its_memory_and_power():
    work, target = seven_billion(DECODE), open_target("rpi5")
    report = price(work, DECODE, target)
    bandwidth, power = target.constants["memory_bandwidth"], target.constants["board_power"]
    assert report.latency_low_s == pytest.approx(report.memory_bytes / bandwidth.high, rel=1e-3)
    assert report.energy_high_j == pytest.approx(report.memory_bytes / bandwidth.low * power.high, rel=1e-3)
    assert report.area_low_mm2 is None and report.area_high_mm2 is None


@settings(max_examples=20)
@given(st.sampled_from(ACCELERATORS), st.floats(1.0, 50.0))
def test_a_wider_assumption_widens_the_range(name, factor):
    target = open_target(name)
    leak = target.constants["logic_leakage"]
    wider = replace(target, constants={**target.constants, "logic_leakage": replace(leak, high=factor * leak.high)})
    one, other = (price(SMALL, DECODE, t) for t in (target, wider))
    assert (
        isinstance(wider, Target)
        and other.energy_high_j >= one.energy_high_j
        and other.energy_low_j == one.energy_low_j
    )


def test_no_range_is_asked_for_in_a_sweep():
    report = price(SMALL, DECODE, open_target("rap"), ranged=False)
    assert all(low == high for low, high in spans(report).values()) and not report.turns_on


@pytest.mark.parametrize("name", target_names())
def test_what_is_waited_for_is_the_latency(name):
    for phase in (DECODE, Phase.of("prefill", 64)):
        report = price(llama(4, 512, 1408, phase.tokens, phase.total), phase, open_target(name))
        assert sum(report.waits_for.values()) == pytest.approx(1, abs=0.01)
        assert list(report.waits_for.values()) == sorted(report.waits_for.values(), reverse=True)
        assert report.bound_by == f"{next(iter(report.waits_for))} {100 * next(iter(report.waits_for.values())):.0f} %"


@pytest.mark.parametrize(
    "name, phase, part, constant",
    [
        *((name, DECODE, "DRAM", "dram_bandwidth") for name in ACCELERATORS if name != "attentionlego"),
        ("rap", Phase.of("prefill", 512), "network", "network_bandwidth"),
        ("tender", Phase.of("prefill", 512), "MAC array", "macs"),
        ("rpi5", DECODE, "memory", "memory_bandwidth"),
        ("rpi5", Phase.of("prefill", 512), "arithmetic", "compute_rate"),
    ],
)
def test_what_binds_seven_billion(name, phase, part, constant):
    """More of what binds, and less time; of all else 1.5 times as much saves less."""
    target, work = open_target(name), seven_billion(phase)
    report = price(work, phase, target)
    assert report.bound_by.startswith(part) and report.waits_for[part] > 0.5

    def faster(key: str) -> float:
        more = target.varied({key: 1.5 * target[key]})
        return report.latency_s / price(work, phase, more, ranged=False).latency_s

    others = [
        key for key, c in target.constants.items() if c.unit in ("byte/s", "op/cycle", "op/s") and key != constant
    ]
    assert faster(constant) > max(1.1, *(faster(key) for key in others))


def test_raps_saving_turns_on_the_converter_law():
    """RAP's own law of converters, in proportion to 2**ENOB; under both measured laws its baseline takes less."""
    lines = turning(SMALL, DECODE, [open_target("rap"), open_target("rap-baseline")])
    (line,) = [line for line in lines if "without leakage" in line]
    assert line.startswith("rap takes 1.") and "less energy without leakage than rap-baseline" in line
    assert "adc_law = isaac" in line and "adc_law = survey" in line
    for law in ("isaac", "survey"):
        reports = [price(SMALL, DECODE, open_target(n).varied({"adc_law": law})) for n in ("rap", "rap-baseline")]
        ours, theirs = (sum(c.energy_j for c in r.components if c.name != "leakage") for r in reports)
        assert ours > 1.2 * theirs


def test_a_ranking_of_one_or_of_the_same_has_no_turns():
    rap = open_target("rap")
    assert turning(SMALL, DECODE, [rap]) == turning(SMALL, DECODE, [rap, rap]) == []
    assert turning(SMALL, DECODE, [open_target("rpi4"), open_target("rpi5")]) == []
