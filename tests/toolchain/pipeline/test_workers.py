"""Layers solved in processes and on a real two-worker Dask cluster end in the bytes of a serial run."""

from __future__ import annotations

import subprocess
import sys

import pytest

from export.contract.errors import InputError
from toolchain.system.workers import Workers, solve_all


def quantize(demo_model, text, out, *options):
    command = [sys.executable, "-m", "toolchain", "quantize", demo_model, "-o", out, "--bits", "3", "--passes", "1"]
    rest = ["--sequences", "8", "--sequence-length", "64", "--calibration", text, "--calibration-part", "0:0.5"]
    subprocess.run([str(c) for c in [*command, *rest, *options]], check=True, capture_output=True)
    return {p.name: p.read_bytes() for p in out.iterdir()}


@pytest.mark.long
def test_processes_and_a_cluster_give_the_same_bytes(demo_model, demo_text, tmp_path):
    from distributed import LocalCluster

    serial = quantize(demo_model, demo_text, tmp_path / "serial")
    assert quantize(demo_model, demo_text, tmp_path / "processes", "--workers", 2) == serial
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        address = cluster.scheduler_address
        options = ("--workers", 2, "--scheduler", address)
        assert quantize(demo_model, demo_text, tmp_path / "cluster", *options) == serial


@pytest.mark.long
def test_wrong_workers_are_refused():
    with pytest.raises(InputError, match="--workers must be"):
        Workers(0)
    with pytest.raises(InputError, match="cannot be reached"):
        list(solve_all(abs, [(1,)], Workers(1, "tcp://127.0.0.1:1")))
