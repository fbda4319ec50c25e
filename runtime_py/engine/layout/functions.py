"""Numbers of the activation functions (kernels/elementwise.py)."""

from __future__ import annotations

SILU, GELU, GELU_TANH, RELU, TANH = range(5)
CLAMPED = 5  # clamped_gate() in place of activate()
SIGMOID = 6
RELU2 = 7  # the square of ReLU
KINDS = RELU2 + 1
