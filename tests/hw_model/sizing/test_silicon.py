"""Machines made to measure: an area is filled and never exceeded, the knee is within 1 %, inheritance and units."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.contract.errors import InputError
from hw_model.estimate import open_target, price
from hw_model.graph_work.workload import Phase
from hw_model.sizing.silicon import RESOURCES, at_the_knee, made, of_area
from targets import target_names
from tests.hw_model.test_books import seven_billion
from tests.hw_model.test_machines import llama

SIZED = [name for name in target_names() if open_target(name).kind in RESOURCES]


def test_seven_billion_deserve_few_arrays():
    """Decode waits for DRAM: 2,048 arrays, and what the chip deserves is at most 64 within 1 % of its latency."""
    phase = Phase.of("decode", 1024)
    work = seven_billion(phase)
    for name in ("rap", "rap-baseline", "digital-sram-pim", "qrazor-pim"):
        whole = price(work, phase, open_target(name), ranged=False)
        sized = at_the_knee(work, phase, open_target(name))
        report = price(work, phase, sized, ranged=False)
        assert sized["arrays"] <= 64 and report.latency_s <= 1.01 * whole.latency_s
        assert report.area_mm2 < whole.area_mm2 and report.energy_j < whole.energy_j


@pytest.mark.parametrize("name", SIZED)
@settings(max_examples=12, deadline=None)
@given(area=st.floats(30, 5000), tokens=st.sampled_from([1, 7]))
def test_an_area_is_filled(name, area, tokens):
    phase = Phase.of("prefill", tokens)
    work, target = llama(2, 256, 704, tokens, tokens), open_target(name)
    try:
        sized = of_area(work, phase, target, area)
    except InputError as error:
        assert "hold none of its" in str(error)
        return
    resource = RESOURCES[target.kind]
    taken, more = (
        price(work, phase, one, ranged=False).area_mm2 for one in (sized, sized.varied({resource: sized[resource] + 1}))
    )
    assert taken <= area * (1 + 1e-9) < more * (1 + 2e-9)
    assert sized.name == f"{name} ({resource}={sized[resource]:.0f})"


@pytest.mark.parametrize("name", SIZED)
@pytest.mark.parametrize("objective", ["latency", "energy", "edp"])
def test_the_knee_is_within_one_percent_and_no_larger_than_it_has_to_be(name, objective):
    phase = Phase.of("decode", 64)
    work, target = llama(2, 512, 1408, 1, 64), open_target(name)
    resource = RESOURCES[target.kind]

    def figure(one):
        report = price(work, phase, one, objective=objective, ranged=False)
        return {"latency": report.latency_s, "energy": report.energy_j, "edp": report.energy_delay}[objective]

    sized = at_the_knee(work, phase, target, objective=objective)
    assert figure(sized) <= 1.01 * figure(target)
    if sized[resource] > 1:
        try:
            assert figure(sized.varied({resource: sized[resource] - 1})) > 0.999 * figure(sized)
        except InputError as error:  # too few to hold what must lie there
            assert "hold not even" in str(error)


def test_area_and_knee_together():
    phase = Phase.of("decode", 1024)
    work = seven_billion(phase)
    sized = made(work, phase, open_target("rap"), area=100, knee=True)
    assert price(work, phase, sized, ranged=False).area_mm2 < 100 and sized["arrays"] <= 64


def test_a_device_has_one_size():
    with pytest.raises(InputError, match="rpi5: a device of kind cpu has one size"):
        of_area([], Phase.of("decode", 1), open_target("rpi5"), 100)


# what does not fit: more chips, or weights that pass through


def test_macros_that_do_not_hold_all_matrices_let_the_rest_through():
    phase, target = Phase.of("decode", 64), open_target("attentionlego")
    work = llama(4, 512, 1408, 1, 64)
    whole = price(work, phase, target, ranged=False)
    macros, streamed = whole.mapping["macros"], []
    for count in (macros, macros - 20, macros // 2):
        report = price(work, phase, target.varied({"macros": count}), ranged=False)
        streamed.append(report.memory_bytes)
        stored = sum(op.weight_bytes for op in work if op.kind == "linear")
        assert report.memory_bytes == pytest.approx((1 - report.mapping["resident_share"]) * stored)
        if count < macros:
            assert report.latency_s > whole.latency_s and report.waits_for["bus"] > 0.5
            energy = {part.name: part.energy_j for part in report.components}
            assert energy["DRAM"] == pytest.approx(report.memory_bytes * target["dram_energy"])
    assert streamed == sorted(streamed) and streamed[0] == 0
    with pytest.raises(InputError, match="hold not even the cache"):
        price(work, phase, target.varied({"macros": 1}), ranged=False)


@pytest.mark.parametrize("name", ["rap", "digital-sram-pim", "qrazor-pim", "attentionlego"])
def test_chips_share_what_does_not_fit(name):
    """Less time for what waits for memory, more area, and links that are paid for and waited for."""
    phase = Phase.of("decode", 64)
    work = llama(4, 512, 1408, 1, 64)
    few = {"macros": 100} if name == "attentionlego" else {"arrays": 16}
    one, four = (price(work, phase, open_target(name).varied({**few, "chips": n}), ranged=False) for n in (1, 4))
    assert four.latency_s < one.latency_s and four.area_mm2 > 3.9 * one.area_mm2
    assert four.mapping["resident_share"] > one.mapping["resident_share"]
    parts = {part.name: part for part in four.components}
    assert parts["links"].energy_j > 0 and parts["links"].area_mm2 > 0 and four.waits_for["links"] > 0
    received = sum(op.vectors * op.rows for op in work if op.kind == "linear")
    assert parts["links"].energy_j == pytest.approx(3 * received * open_target(name)["link_energy"])
    assert "links" not in one.waits_for


@settings(max_examples=20, deadline=None)
@given(tiles=st.integers(1, 6), chips=st.integers(1, 4), arrays=st.integers(1, 64), tokens=st.sampled_from([1, 9]))
def test_tiles_and_chips_have_the_arrays_of_one_large_chip(tiles, chips, arrays, tokens):
    phase = Phase.of("prefill", tokens)
    work, target = llama(2, 256, 704, tokens, tokens), open_target("rap")
    several = price(work, phase, target.varied({"tiles": tiles, "chips": chips, "arrays": arrays}), ranged=False)
    single = price(work, phase, target.varied({"arrays": arrays * tiles * chips}), ranged=False)
    assert several.mapping["arrays"] == single.mapping["arrays"] and several.area_mm2 >= single.area_mm2 * (1 - 1e-12)
    assert several.peak_macs_per_s == single.peak_macs_per_s and several.macs == single.macs
    if tiles * chips == 1:
        assert several.latency_s == single.latency_s and several.energy_j == single.energy_j
