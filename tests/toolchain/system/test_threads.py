"""The number of threads changes no byte; work comes back in order, and a failing piece ends it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from toolchain.quantize import method
from toolchain.settings.quantize import QuantizeSettings
from toolchain.system.threads import fixed_rounding, ordered, pieces, thread_count


def test_results_come_in_order_whatever_finishes_first(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    names = set()

    def slow(i: int) -> int:
        names.add(threading.current_thread().name)
        time.sleep(0.01 * (i % 3))
        assert list(ordered(abs, [-i, -i])) == [i, i]  # inside a thread: one by one, without waiting for others
        return i

    assert thread_count() == 3 and list(ordered(slow, range(20))) == list(range(20))
    assert 1 < len(names) <= 3
    assert pieces(10, 4) == [slice(0, 4), slice(4, 8), slice(8, 10)]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert list(ordered(abs, [-1, 2])) == [1, 2]


def test_a_failing_piece_ends_the_work(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")

    def fail(i: int) -> int:
        if i == 3:
            raise ValueError("piece three")
        return i

    with pytest.raises(ValueError, match="piece three"):
        list(ordered(fail, range(1000)))


_SCRIPT = """
import hashlib, json, sys
from pathlib import Path
from toolchain.pipeline.run import quantize_model
from toolchain.settings.calibration import CalibrationChoice
from toolchain.settings.quantize import QuantizeSettings
model, text, out = sys.argv[1:4]
for i, options in enumerate(json.loads(sys.argv[4])):
    folder = Path(out) / str(i)
    settings = QuantizeSettings(sequences=8, sequence_length=64, passes=1, **options)
    quantize_model(model, folder, settings, CalibrationChoice(text, "0:0.2"), quiet=True)
    for path in sorted(folder.glob("*.safetensors")):
        print(i, path.name, hashlib.sha256(path.read_bytes()).hexdigest())
"""


def digests(threads: int, *arguments: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "NUMBA_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, *arguments], env=environment, check=True, capture_output=True, text=True
    )
    return done.stdout


def test_a_checkpoint_is_the_same_for_any_number_of_threads(demo_model, demo_text, tmp_path):
    """Trellis and scalar codes, guided, tuned by block and end to end."""
    tune = {"tune_steps": 2, "tune_batch": 4, "tune_length": 32, "own_text": 0.5}
    options = json.dumps(
        [{"format": "trellis", "bits": None, "budget": 2.5, "guided": True, **tune}, {"block_steps": 3}]
    )
    found = [digests(n, str(demo_model), str(demo_text), str(tmp_path / str(n)), options) for n in (1, 2, 3)]
    assert found[0] == found[1] == found[2] and len(found[0].splitlines()) == 10


@pytest.mark.parametrize("options", [{}, {"format": "trellis"}])
def test_long_rows_are_the_same_for_any_number_of_threads(options, monkeypatch):
    """The float32 solvers, whose sums BLAS would split over its threads."""
    rng = np.random.default_rng(0)
    w, x = rng.standard_normal((600, 1100)), rng.standard_normal((1500, 1100))
    results = []
    for threads in (1, 2):
        monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
        with fixed_rounding():
            results.append(method("athena")(w, x.T @ x, QuantizeSettings(bits=2, passes=1, **options)))
    for part in ("codes", "codebook", "scale"):
        np.testing.assert_array_equal(results[0][part], results[1][part])
