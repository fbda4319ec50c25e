"""--dry-run against what then happens."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from toolchain.predict.probe import _extrapolated

MEASURED = """
import json, sys
from pathlib import Path
from runtime_py.system.memory import peak_rss
from toolchain.pipeline.run import quantize_model
from toolchain.settings.calibration import CalibrationChoice
from toolchain.settings.quantize import QuantizeSettings
settings = QuantizeSettings(bits=3, sequences=64)
checkpoint = quantize_model(sys.argv[1], Path(sys.argv[2]), settings, CalibrationChoice(), quiet=True)
print(json.dumps({**checkpoint.manifest["totals"], "peak": peak_rss()}))
"""


@pytest.mark.long
def test_dry_run_predicts_size_memory_and_time(tmp_path, demo_model):
    command = [sys.executable, "-m", "toolchain", "quantize", demo_model, "-o", tmp_path / "out", "--bits", "3"]
    done = subprocess.run(
        [*command, "--sequences", "64", "--dry-run", "--json"], capture_output=True, text=True, check=True
    )
    assert not (tmp_path / "out").exists()
    predicted = json.loads(done.stdout)
    start = time.perf_counter()
    real = subprocess.run(
        [sys.executable, "-c", MEASURED, demo_model, tmp_path / "out"], capture_output=True, text=True, check=True
    )
    seconds, totals = time.perf_counter() - start, json.loads(real.stdout)
    assert predicted["output_bytes"] == pytest.approx(totals["bytes"], rel=0.05)
    assert predicted["effective_bits"] == pytest.approx(totals["effective_bits"], rel=0.02)
    assert predicted["parameters"] == pytest.approx(totals["parameters"], rel=0.01)
    assert predicted["peak_bytes"] == pytest.approx(totals["peak"], rel=0.2)
    # Seconds are compared loosely: start-up counts in a run this short, and test machines are shared.
    assert predicted["seconds"] / 4 < seconds < 4 * predicted["seconds"] + 15


def test_a_fixed_part_is_counted_once():
    """What a block takes once (arrays of a hundred megabytes on a large model) does not grow with the sequences."""
    assert _extrapolated((2, 3.0 + 2 * 0.5), (6, 3.0 + 6 * 0.5), 32) == pytest.approx(3.0 + 32 * 0.5)
    assert _extrapolated((2, 1.0), (2, 1.0), 8) == pytest.approx(4.0)  # one measurement: all of it is counted for each
    assert _extrapolated((2, 1.5), (6, 1.0), 32) == pytest.approx(1.0)  # a disturbed one: never less than was seen
