"""RAP's mechanisms: each is what its constants say, together they are the proposal, and equal means equal."""

from __future__ import annotations

import pytest

from export.contract.errors import InputError
from hw_model.claims.mechanisms import ALL, MECHANISMS, compare, compare_by_law, densities, variants
from hw_model.estimate import open_target, price
from hw_model.graph_work.workload import Phase
from hw_model.machines.array import build
from targets.gates import UNITS
from tests.hw_model.test_machines import llama

PAIRS = [("rap-baseline", "rap"), ("rap-baseline-shared", "rap-shared")]
PHASE = Phase.of("prefill", 16)


@pytest.mark.parametrize("baseline, proposal", PAIRS)
def test_the_mechanisms_together_are_the_proposal(baseline, proposal):
    one, other = open_target(baseline), open_target(proposal)
    found = variants(one, other)
    assert list(found) == [baseline, *MECHANISMS, ALL]
    whole = found[ALL]
    assert {n: c.value for n, c in whole.constants.items()} == {n: c.value for n, c in other.constants.items()}
    assert whole.choices == other.choices
    for name, names in MECHANISMS.items():
        differing = {n for n, c in found[name].constants.items() if c.value != one[n]}
        differing |= {n for n, c in found[name].choices.items() if c != one.choices[n]}
        assert differing and differing <= set(names)


@pytest.mark.parametrize("baseline, proposal", PAIRS)
def test_equal_arrays_and_equal_area(baseline, proposal):
    work = llama(2, 512, 1408, 16, 16)
    one, other = open_target(baseline), open_target(proposal)
    rows = compare(work, PHASE, one, other)
    by = {(row.variant, row.equal): row for row in rows}
    assert len(rows) == 2 * (2 + len(MECHANISMS))
    arrays = {row.arrays for row in rows if row.equal == "arrays"}
    assert len(arrays) == 1 and all(row.resident == 1 for row in rows if row.equal == "arrays")
    area = by[baseline, "arrays"].area_mm2
    for row in rows:
        if row.equal == "area":
            target = variants(one, other)[row.variant]
            each = build(target).area
            assert row.area_mm2 <= area * (1 + 1e-8) and row.area_mm2 + each * 1.0001 > area
    whole = price(work, PHASE, other.varied({"arrays": 0}), ranged=False)
    assert by[ALL, "arrays"].energy_j == pytest.approx(whole.energy_j)
    assert by[ALL, "arrays"].latency_s == pytest.approx(whole.latency_s)
    baseline_row = by[baseline, "arrays"]
    for mechanism in ("no dequantize-quantize", "no FPU, no divider"):
        row = by[mechanism, "arrays"]
        assert row.dynamic_j < baseline_row.dynamic_j and row.area_mm2 < baseline_row.area_mm2
        assert row.latency_s <= baseline_row.latency_s * (1 + 1e-12)


def test_targets_that_differ_in_more_are_refused():
    with pytest.raises(InputError, match="differ in cache_capacity, which is no part"):
        variants(open_target("rap-baseline"), open_target("rap").varied({"cache_capacity": 1.0}))
    with pytest.raises(InputError, match="of kind pim"):
        variants(open_target("rpi5"), open_target("rap"))
    for names in (("rpi5", "rap"), ("rap-baseline", "tender")):
        with pytest.raises(InputError, match="of kind pim"):
            compare_by_law([], Phase.of("decode", 1), *map(open_target, names))


def test_a_shared_converter_is_as_fast_as_published():
    """ISAAC: 128 columns at 1.2 GS/s, 107 ns a plane; its area counts once for them."""
    array = build(open_target("rap-baseline-shared"))
    assert array.seconds == pytest.approx(8 * 128 / 1.2e9)
    assert array.areas["ADC"] == pytest.approx(8 * 1200e-6)
    rap = build(open_target("rap-shared"))
    assert rap.areas["ADC"] == pytest.approx(32 * 361e-6, rel=1e-5)
    assert rap.seconds == pytest.approx(rap.cycles * 32 / 1.2e9)
    found = {one.variant: one for one in densities(open_target("rap-baseline-shared"), open_target("rap-shared"))}
    assert found["rap-baseline-shared"].tops_per_mm2 == pytest.approx(2 * 128**2 / array.seconds / array.area * 1e-12)


def test_units_are_our_own():
    """Energy and area of both lanes are sums of results of gates.toml, by the same script as the SDR unit."""
    rap, baseline = open_target("rap"), open_target("rap-baseline")
    assert rap["requantize_area"] == UNITS["shift_parse"].area
    assert rap["softmax_energy"] == UNITS["softmax_integer"].energy_per_mac
    lane = ("fp32_from_integer", "fp32_mul", "fp32_mul", "fp32_sum", "integer_from_fp32")
    assert baseline["requantize_area"] == pytest.approx(sum(UNITS[name].area for name in lane))
    assert baseline["requantize_energy"] == pytest.approx(sum(UNITS[name].energy_per_mac for name in lane))
    softmax = 5 * UNITS["fp32_mul"].area + 6 * UNITS["fp32_sum"].area + UNITS["fp32_div"].area
    assert baseline["softmax_area"] == pytest.approx(softmax)
    assert rap["requantize_area"] < 0.2 * baseline["requantize_area"]
    assert rap["softmax_area"] < 0.2 * baseline["softmax_area"]
