"""Bottleneck folders that the package `adapters` writes: its own states, to rounding.

Run by `make test-conformity`, which sets up an environment with it (ATHENA_ADAPTERS: its python).
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from runtime_py.text.encoder import TextEncoder
from tests.toolchain.adapters.test_families import IDS, exported
from toolchain.adapters.adding import add_adapter

pytestmark = pytest.mark.conformity
PYTHON = os.environ.get("ATHENA_ADAPTERS", "")


@pytest.mark.parametrize("variant", ["bert", "albert", "distilbert", "roberta"])
def test_states_of_the_package(tmp_path, variant):
    if not PYTHON:
        pytest.skip("ATHENA_ADAPTERS does not name the python of an environment with the package adapters")
    folder, hub = exported(tmp_path, variant), tmp_path / "hub"
    hub.mkdir()
    command = [PYTHON, str(Path(__file__).with_name("adapters_run.py")), str(tmp_path / "source"), str(hub)]
    done = subprocess.run([*command, json.dumps(IDS)], capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    wanted = np.load(hub / "states.npz")
    for form in wanted:
        add_adapter(folder, f"{form}-safe", hub / f"{form}-safe", 32)
    add_adapter(folder, "houlsby", hub / "houlsby", 32)  # the pickle
    encoder = TextEncoder(folder, "float32", adapters=None)
    plain = encoder.states(IDS, adapter="")
    for name in encoder.adapters:
        expected = wanted[name.removesuffix("-safe")]
        np.testing.assert_allclose(encoder.states(IDS, adapter=name), expected, atol=2e-5)
        assert np.abs(expected - plain).max() > 0.1
