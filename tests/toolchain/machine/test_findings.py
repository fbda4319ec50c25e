"""`doctor`: one screen, true, and a word for what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from runtime_py.machine import isa
from runtime_py.system.thread_pool import available_threads
from toolchain.machine import findings as found_here
from toolchain.machine.findings import findings


def doctor(*arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-m", "toolchain", "doctor", *arguments],
        capture_output=True, text=True, timeout=120, env={**os.environ, "COLUMNS": "80", **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def by_topic(answer):
    return {one["topic"]: one for one in json.loads(answer.stdout)["findings"] if one["topic"]}


def test_a_screen_of_80_columns():
    done = doctor()
    lines = done.stdout.splitlines()
    assert len(lines) <= 30 and max(map(len, lines)) <= 80
    assert "found" in done.stderr


def test_it_says_what_runs_would_use():
    found = by_topic(doctor("--json"))
    assert found["instructions"]["said"].startswith(isa.pick())
    assert found["threads"]["said"].startswith(f"{available_threads()} of ")
    assert "numpy" in found["packages"]["said"] and "GB free" in found["memory"]["said"]


def test_troubles_are_named(tmp_path):
    wall = tmp_path / "file"
    wall.write_text("")
    found = by_topic(doctor("--json", ATHENA_ISA="sse9", ATHENA_THREADS="many", ATHENA_CACHE_DIR=str(wall / "in")))
    assert "ATHENA_ISA=sse9" in found["instructions"]["trouble"]
    assert "ATHENA_THREADS=many" in found["threads"]["trouble"]
    assert "every start compiles" in found["kernels"]["trouble"]


@pytest.mark.parametrize("missing", ["torch", "starlette", "joblib"])
def test_missing_packages_and_their_extras(monkeypatch, missing):
    real = found_here._version
    monkeypatch.setattr(found_here, "_version", lambda name: None if name == missing else real(name))
    lines = [one.said for one in findings()]
    (line,) = [line for line in lines if f"lacks {missing}" in line or f", {missing}" in line]
    assert "pip install 'athena-export[" in line
    (whole,) = [line for line in lines if line.startswith("complete:")]
    assert line.split(" lacks")[0] not in whole.removeprefix("complete: ").split(", ")
