"""The units of hw_model/rtl in gates: equal to the codec as source and after synthesis. Skips without tools."""

from __future__ import annotations

from pathlib import Path

import pytest

from hw_model.components.logic import UNITS
from targets import load_target
from tests.rtl import tools, units
from tests.rtl.run import ALL, check, measure

needs_tools = pytest.mark.skipif(bool(tools.missing()), reason=f"rtl: {tools.missing()}")


@needs_tools
@pytest.mark.parametrize("unit", ALL, ids=lambda unit: unit.name)
def test_source_equals_the_reference(unit: units.Unit, tmp_path: Path) -> None:
    check(unit, tmp_path)


@needs_tools
@pytest.mark.parametrize("name", ["sdr_mac", "sdr_compressor", "shift_parse", "integer_from_fp32"])
@pytest.mark.parametrize("script", tools.SCRIPTS)
def test_gates_equal_the_reference(name: str, script: str, tmp_path: Path) -> None:
    unit = next(unit for unit in ALL if unit.name == name)
    library = tools.Library.read()
    area, _ = measure(unit, script, units.Tensors.random(3), tmp_path, library)
    assert area / library.gate_area == pytest.approx(UNITS[name].gate_equivalents, rel=0.1)


def test_bands_on_the_stored_ratios() -> None:
    """Ratios hold over libraries; absolute figures do not, so only bands are asserted."""
    sdr = UNITS["sdr_dot16"]
    for other, area, energy in (
        ("dot16_8x8", 0.35, 0.55),
        ("dot16_8x16", 0.25, 0.4),
        ("dot16_decompress", 0.25, 0.4),
        ("dot16_4_fp16", 0.55, 1.1),
    ):
        assert sdr.gate_equivalents < area * UNITS[other].gate_equivalents
        assert sdr.energy_per_mac < energy * UNITS[other].energy_per_mac


def test_the_cost_models_sdr_target_has_the_measured_energies() -> None:
    target = load_target("qrazor-pim")
    assert target["attention_energy"] == pytest.approx(UNITS["sdr_dot16"].energy_per_mac, rel=0.02)
    assert target["requantize_energy"] == pytest.approx(UNITS["sdr_compressor"].energy_per_mac / 16, rel=0.02)
