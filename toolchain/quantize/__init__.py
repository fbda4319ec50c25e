"""Quantization methods, one file each: quantize(weights [N, K], hessian [K, K], settings) -> QuantizedMatrix.

A method whose file says NEEDS_GRADIENTS also takes the squared weight gradients [N, K].
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import numpy as np

from export.artefacts.checkpoint import COMPACT, RAZORED, TensorRecord
from export.contract.errors import InputError
from runtime_py.system import jit_cache
from toolchain.quantize.stored.codebook import QuantizedMatrix
from toolchain.quantize.stored.compact import CompactMatrix
from toolchain.quantize.stored.razored import RazoredMatrix

jit_cache.install()  # before any module of this package compiles
Matrix = QuantizedMatrix | RazoredMatrix | CompactMatrix
Method = Callable[..., Matrix]
METHODS = ("athena", "rtn", "gptq", "squeezellm", "aqlm", "qrazor")


def method(name: str) -> Method:
    """The quantization method called `name`. Raises InputError when there is none."""
    if name not in METHODS:
        raise InputError(f"--method {name!r} is unknown; choose one of {', '.join(METHODS)}")
    return import_module(f"toolchain.quantize.methods.{name}").quantize


def needs_gradients(name: str) -> bool:
    """Whether the method takes squared weight gradients as its fourth argument."""
    return bool(getattr(import_module(f"toolchain.quantize.methods.{name}"), "NEEDS_GRADIENTS", False))


def restored(record: TensorRecord, tensor: Callable[[str], np.ndarray | None]) -> Matrix:
    """A stored matrix by its record; tensor(suffix) gives a stored part, None where there is none."""
    if record.scheme in COMPACT:
        return CompactMatrix.restored(record, tensor)
    return (RazoredMatrix if record.scheme == RAZORED else QuantizedMatrix).restored(record, tensor)
