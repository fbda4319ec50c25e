"""Runs a model folder with Numba kernels. Needs numpy, numba, onnx (to read the file) and tokenizers; never torch."""

import os

# OpenMP threads that spin while they wait take the cores from the BLAS threads of numpy, and the other way round:
# a prefill of 256 tokens ran ten times slower on two cores. Read when the OpenMP library loads, so it must come first.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
