"""What emulation measured, in a folder's report: found for the machine that was emulated and for no other."""

from __future__ import annotations

import json
import shutil

import pytest

from hw_model.estimate import open_target
from hw_model.sizing.sweep import Model, Start, sweep
from tests.hw_model.test_machines import llama
from toolchain.report.emulated import add_emulated, divergence, own_divergence


@pytest.fixture
def folder(demo_folder, tmp_path):
    return shutil.copytree(demo_folder, tmp_path / "model")


def model(folder) -> Model:
    return Model(str(folder), lambda phase: llama(1, 256, 704, phase.vectors, phase.total))


def test_a_variant_takes_the_figure_of_its_own_numbers(folder):
    target = open_target("rap-baseline").varied({"adc_bits": 5.0})
    add_emulated(folder, target, 0.0, 0.25, "athena-export eval ...")
    assert divergence(model(folder), target) == 0.25
    assert divergence(model(folder), target.varied({"arrays": 3.0, "dram_bandwidth": 1e9})) == 0.25
    for other in ({"adc_bits": 6.0}, {"rows": 64.0}, {"weight_bits": 4.0}):
        assert divergence(model(folder), target.varied(other)) is None
    assert divergence(model(folder), open_target("digital-sram-pim")) is None
    points = sweep([model(folder)], Start("rap-baseline", context=8), [("adc_bits", ("4", "5", "8"))], divergence)
    assert [point.accuracy.kl for point in points] == [None, 0.25, None]
    assert [point.best for point in points] == [False, True, True]
    add_emulated(folder, target, 0.0, 0.5, "again")
    add_emulated(folder, target, 0.1, 0.7, "with noise")
    assert divergence(model(folder), target) == 0.5
    assert len(json.loads((folder / "report.json").read_text())["emulated"]) == 2


@pytest.mark.parametrize(
    "broken", ["x", [1, None], [{"machine": {}}], [{"machine": None, "kl": "low"}], {"a": 1}, None]
)
def test_a_report_that_holds_something_else_measures_nothing(folder, broken):
    path = folder / "report.json"
    report = json.loads(path.read_text())
    path.write_text(json.dumps({**report, "emulated": broken}))
    assert divergence(model(folder), open_target("rap")) is None
    path.write_text("{")
    assert divergence(model(folder), open_target("rap")) is None and own_divergence(folder) is None
    path.unlink()
    assert divergence(model(folder), open_target("rap")) is None and own_divergence(folder) is None
