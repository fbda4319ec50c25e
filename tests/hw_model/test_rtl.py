"""The units of hw_model/rtl in gates: equal to the codec as source and after synthesis. Skips without tools."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hw_model.components.logic import UNITS
from targets import load_target
from targets.gates import figure
from targets.toml_file import tomllib
from tests.conftest import shared
from tests.rtl import tools, units
from tests.rtl.run import ALL, check, measure, real_tensors

ROOT = Path(__file__).resolve().parents[2]

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
    exact = 5e-4 if script == "plain" else 0.1  # the same tools give the same gates; others' may differ by a cell
    assert area / library.gate_area == pytest.approx(UNITS[name].gate_equivalents, rel=exact)


@needs_tools
@pytest.mark.parametrize("name", ["mac_4x4", "sdr_mac", "shift_parse", "integer_from_fp32"])
def test_stored_energies_are_those_of_the_layers_tensors(name: str, tmp_path: Path) -> None:
    shared("models/scribe-6M")
    unit, library = next(unit for unit in ALL if unit.name == name), tools.Library.read()
    _, energy = measure(unit, "plain", real_tensors(), tmp_path, library)
    assert energy == pytest.approx(_stored()[name]["energy_pj"], rel=5e-4)


@needs_tools
@pytest.mark.long
def test_the_whole_script_gives_what_is_stored() -> None:
    """`make rtl`: every row, area and energy, to the last digit. Ten minutes."""
    shared("models/scribe-6M")
    found = subprocess.run([sys.executable, "-m", "tests.rtl.run"], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0 and "targets/gates.toml: as measured." in found.stdout, found.stderr[-2000:]


def test_every_unit_is_stored_and_every_constant_of_own_gates_names_one() -> None:
    """No figure of ours is typed into a target: those that say so are multiples and sums of what was measured."""
    stored = _stored()
    assert {name for name, value in stored.items() if isinstance(value, dict)} == {u.name for u in ALL} | {"activity"}
    files = [*(ROOT / "targets" / "devices").glob("*.toml"), ROOT / "targets" / "defaults.toml"]
    found = 0
    for path in files:
        data = tomllib.loads(path.read_text())
        for constants in (data["constants"],) if "constants" in data else data.values():
            for name, entry in constants.items():
                if "own gate" in entry["source"] or isinstance(entry["value"], str):
                    assert isinstance(entry["value"], str), (path.name, name)
                    assert figure(entry["value"]) > 0, (path.name, name)
                    found += 1
    assert found >= 20


def test_the_page_has_what_is_stored() -> None:
    """The plain columns of docs/qrazor.md."""
    text = (ROOT / "docs" / "qrazor.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\d+) / \d+ \| ([\d.]+) / [\d.]+ \|$", text, re.MULTILINE)
    stored = _stored()
    assert [name for name, _, _ in rows] == [unit.name for unit in ALL]
    for name, gates, energy in rows:
        assert float(gates) == pytest.approx(stored[name]["gate_equivalents"], abs=0.51)
        assert float(energy) == pytest.approx(stored[name]["energy_pj"], abs=0.051)


def _stored() -> dict[str, Any]:
    return tomllib.loads((ROOT / "targets" / "gates.toml").read_text())


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
