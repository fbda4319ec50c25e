"""Quantization methods. Each is a function (weights [N, K], hessian [K, K], settings) -> QuantizedMatrix."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import numpy as np

from export.errors import InputError
from toolchain.quantize.result import QuantizedMatrix
from toolchain.quantize.settings import QuantizeSettings

Method = Callable[[np.ndarray, np.ndarray, QuantizeSettings], QuantizedMatrix]
METHODS = ("athena", "rtn")


def method(name: str) -> Method:
    """The quantization method called `name`. Raises InputError when there is none."""
    if name not in METHODS:
        raise InputError(f"--method {name!r} is unknown; choose one of {', '.join(METHODS)}")
    return import_module(f"toolchain.quantize.{name}").quantize
