"""From weights and Hessian to a stored matrix: methods by name, solvers by format.

A method is a file of methods/ with quantize(weights [N, K], hessian [K, K], settings) -> StoredMatrix.
Those in GRADIENT_METHODS also take the squared weight gradients [N, K].
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from export.artefacts.stored_matrix import StoredMatrix
from export.contract.errors import InputError
from runtime_py.system import numba_ready  # noqa: F401 (before any module of this package)
from toolchain.settings.quantize import QuantizeSettings
from toolchain.settings.solver import FORMAT_SOLVERS, METHODS

if TYPE_CHECKING:
    import torch

IN_TORCH = ("athena",)  # methods whose quantize() takes a device
Method = Callable[..., StoredMatrix]


def method(name: str) -> Method:
    """The quantization method called `name`. Raises InputError when there is none."""
    if name not in METHODS:
        raise InputError(f"--method {name!r} is unknown; choose one of {', '.join(METHODS)}")
    return import_module(f"toolchain.quantize.methods.{name}").quantize


def quantizer(settings: QuantizeSettings, device: torch.device | None = None) -> Method:
    """What quantizes a matrix by these settings: the solver of a format that has its own, else the method.

    device: where a method that can, IN_TORCH, solves; others solve on the processor.
    """
    if settings.method in FORMAT_SOLVERS.get(settings.format or "", ()):
        return import_module(f"toolchain.quantize.solvers.{settings.format}").quantize
    found = method(settings.method)
    on_processor = device is None or device.type == "cpu"
    return found if on_processor or settings.method not in IN_TORCH else partial(found, device=device)
