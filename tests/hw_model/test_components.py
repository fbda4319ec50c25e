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
from hw_model.validation import markdown, rows

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


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row.chip} {row.quantity}".replace(" ", "-"))
def test_published_silicon(row):
    if row.modelled is None:
        assert row.why
    else:
        assert abs(row.error) <= row.tolerance + 1e-12, f"{row.modelled} {row.unit}, published {row.published}"


def test_the_table_in_the_docs_is_the_one_the_model_prints():
    from pathlib import Path

    assert markdown() in (Path(__file__).parents[2] / "docs" / "validation.md").read_text()
