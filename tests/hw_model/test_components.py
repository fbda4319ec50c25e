"""Component equations against regression rows, closed forms and published silicon."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hw_model.components.converters import LAWS, adc_area, adc_delay, adc_energy
from hw_model.components.gates import tree_adders
from hw_model.components.logic import TO_28NM, operation_energy
from hw_model.components.macro import Macro, areas, clock_period, energies, energy_per_mac, tops, tops_per_watt
from hw_model.components.memory import bit_mask_bits, resistive_pulse_energy, sram_read_energy
from hw_model.components.scaling import area_factor, energy_factor

ANALOG = Macro(True, 128, 128, bits_per_cycle=2, adc_bits=8)
DIGITAL = Macro(False, 128, 128)


@pytest.mark.parametrize(
    "macro, clock, area, peak, efficiency",
    [
        (ANALOG, 14.07244, 2.2878123152749223, 0.582, 9.622),
        (DIGITAL, 3.75708, 0.8018113023999999, 1.090, 7.490),
        (Macro(False, 128, 128, bits_per_cycle=2), 3.87180, 1.5884857856, 2.116, 7.546),
    ],
)
def test_regression_rows_of_the_reference(macro, clock, area, peak, efficiency):
    """hardware_equations.md section 2; the clock and area are constants of ZigZag's own tests, to their last digit."""
    assert clock_period(macro) == pytest.approx(clock, abs=1e-12)
    assert sum(areas(macro).values()) * 1e-6 == pytest.approx(area, rel=1e-14)
    assert tops(macro) == pytest.approx(peak, abs=5e-4)
    assert tops_per_watt(macro) == pytest.approx(efficiency, abs=5e-4)


def test_energy_by_part():
    expected = {"DAC": 2.53, "ADC": 175.27, "multipliers": 9.07, "bit lines": 9.07, "place-value adders": 8.08,
                "accumulators": 3.83}  # fmt: skip
    found = {name: value / ANALOG.macs_per_cycle for name, value in energies(ANALOG).items()}
    assert found == pytest.approx(expected, abs=0.006)
    assert energy_per_mac(DIGITAL) == pytest.approx(267.02, abs=0.005)


def test_structures_of_digital_macros_by_hand():
    """ISSCC 2022 15.5 and ISSCC 2023 7.2, term by term (hardware_equations.md section 3)."""
    half = {"input_toggles": 0.5, "weight_ones": 0.5}
    booth = Macro(False, 32, 6, 64, bits_per_cycle=2, booth=True, accumulator_bits=32, **half)
    adder, register = 7.8 * 0.614, 6 * 0.614
    expected = 384 * (32 * 8 * 0.614 + 305 * adder + 32 * (adder + register))
    assert sum(areas(booth).values()) == pytest.approx(expected)
    assert energy_per_mac(booth) == pytest.approx(2.27 * 0.25 * 4 + 32.43 * 4 * 0.25 + 20.41, rel=0.02)
    columns = Macro(False, 128, 1, 8, bits_per_cycle=2, by_column=True, **half)
    expected = 64 * (256 * 0.614 + 374 * adder) + 8 * (116 * adder + 23 * (adder + register))
    assert sum(areas(columns).values()) == pytest.approx(expected)
    assert energy_per_mac(columns) == pytest.approx(4.54 + 91.85 + 3.67, rel=1e-3)


def test_structures_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="one of them at a time"):
        Macro(True, 128, 128, by_column=True)
    with pytest.raises(ValueError, match="two bits a cycle"):
        Macro(False, 128, 128, booth=True)


@given(
    st.booleans(), st.integers(1, 9), st.integers(1, 8), st.integers(1, 8), st.sampled_from([22.0, 28.0, 65.0]),
    st.booleans(), st.booleans(),
)  # fmt: skip
def test_any_structure_costs_something_and_goes_with_the_node(analog, depth, outputs, bits, node, by_column, pipelined):
    """Registers make no cycle longer; areas and energies of logic follow the node, a converter's energy does not."""
    form = {"input_bits": 8, "weight_bits": bits, "adc_bits": 4, "by_column": by_column and not analog}
    macro, plain = (
        Macro(analog, 2**depth, outputs, pipelined=pipelined, node=at, **form) for at in (node, 28.0)
    )  # fmt: skip
    whole = Macro(analog, 2**depth, outputs, node=node, **form)
    assert 0 < clock_period(macro) <= clock_period(whole)
    assert sum(areas(macro).values()) == pytest.approx(sum(areas(plain).values()) * node / 28)
    for name, value in energies(macro).items():
        assert value == pytest.approx(energies(plain)[name] * (1 if name in ("ADC", "DAC") else node / 28))


@given(st.integers(1, 8), st.integers(1, 12))
def test_the_tree_formula_counts_ripple_adders(depth, bits):
    inputs, width, count = 2**depth, bits, 0
    while inputs > 1:
        inputs //= 2
        count += inputs * width  # the sum's own extra bit is the last adder's carry
        width += 1
    assert tree_adders(2**depth, bits) == count


@pytest.mark.parametrize(
    "bits, area, energy", [(3, 99.6, 243.1), (4, 183.0, 324.2), (8, 2084.7, 701.1), (10, 7035.6, 1659.3)]
)
def test_converter_table(bits, area, energy):
    assert adc_area(bits) == pytest.approx(area, abs=0.05)
    assert adc_energy(bits, 0.9) == pytest.approx(energy, abs=0.05)
    assert adc_delay(8, 64) == pytest.approx(8.46, abs=0.005) and adc_delay(4, 128) == pytest.approx(5.90, abs=0.005)


def test_the_three_converter_laws_disagree_as_documented():
    saving = {law: adc_energy(8, 0.9, law) / adc_energy(4, 0.9, law) for law in LAWS}
    assert saving == pytest.approx({"survey": 2.16, "isaac": 2.0, "pow2": 16.0}, abs=0.01)
    with pytest.raises(ValueError, match="unknown"):
        adc_energy(8, 0.9, "magic")


def test_scaling_between_nodes():
    assert energy_factor(45, 0.9, 45, 0.9) == area_factor(28, 28) == 1.0
    assert area_factor(45, 32) == 0.46 and area_factor(45, 7) == 0.059
    assert 0.4 < TO_28NM < 0.6  # hardware_equations.md section 5 uses 0.51
    assert area_factor(45, 20) < area_factor(45, 28) < area_factor(45, 32)
    by_hand = (0.1776 * 0.49 - 0.09097 * 0.7 + 0.02447) / (1.103 * 0.81 - 0.362 * 0.9 + 0.2767)
    assert energy_factor(45, 0.9, 7, 0.7) == pytest.approx(by_hand)
    with pytest.raises(ValueError, match="outside the table"):
        area_factor(45, 3)


def test_memories():
    assert sram_read_energy(8 << 10) == pytest.approx(10e-12 / 8)
    assert sram_read_energy(1 << 20) == pytest.approx(100e-12 / 8)
    assert sram_read_energy(64 << 10) > sram_read_energy(32 << 10)
    assert resistive_pulse_energy(0.2, 1e-9, 1333) == pytest.approx(0.03e-12, rel=0.01)  # ISAAC's cell, read
    assert bit_mask_bits(0.5, 8) == 5 and bit_mask_bits(7 / 8, 8) == 8  # arXiv 2303.16100: breaks even at 1 - 1/b


def test_operations_cost_what_their_width_says():
    assert operation_energy("fp32 mul") > 10 * operation_energy("int8 mul")
