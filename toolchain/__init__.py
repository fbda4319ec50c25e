"""Checkpoint in, model folder out: reading, calibration, quantization, evaluation, reports and the command line."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as in runtime_py, for torch, numpy and Numba in one process
