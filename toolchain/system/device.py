"""Where calibration, solvers and tuning compute: in threads of the processor, or on an accelerator that torch knows.

An accelerator is busy with one piece of work as it is, so pieces follow one another there, in batches, not in threads.
Hidden states stay in the memory of the host and go over batch by batch: they are the largest thing a run keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch

from export.contract.errors import InputError
from toolchain.settings.calibration import Workers
from toolchain.system.threads import ordered, pieces

CPU = torch.device("cpu")
_TOKENS = 4096  # of a batch: enough to keep a device busy, and few enough for the activations of a wide block
Item = TypeVar("Item")
Result = TypeVar("Result")


def chosen_device(workers: Workers) -> torch.device:
    """The device for --device; auto: CUDA, then Apple's MPS, then the processor.

    Raises InputError where torch does not have it, and where other processes than this one are to solve the layers.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    name = next(n for n, here in available.items() if here) if workers.device == "auto" else workers.device
    if not available[name]:
        raise InputError(f"--device {name}: torch {torch.__version__} finds none on this machine; use --device cpu")
    if name != "cpu" and (workers.count > 1 or workers.scheduler is not None):
        raise InputError(f"--workers and --scheduler are for --device cpu: {name} solves the layers itself")
    return torch.device(name)


def each(function: Callable[[Item], Result], items: Iterable[Item], device: torch.device) -> Iterator[Result]:
    """function(item) for every item, in order: in threads of the processor, or one after another."""
    return ordered(function, items) if device.type == "cpu" else map(function, items)


def batches(sequences: int, length: int, device: torch.device) -> list[slice]:
    """Sequences that go through a block together: one on the processor, some thousand tokens on a device."""
    return pieces(sequences, 1 if device.type == "cpu" else max(1, _TOKENS // length))


def has_float64(device: torch.device) -> bool:
    return device.type != "mps"


def wide(device: torch.device) -> torch.dtype:
    """The type of long sums."""
    return torch.float64 if has_float64(device) else torch.float32


def summed(total: torch.Tensor | None, term: torch.Tensor) -> torch.Tensor:
    """total + term in float64, in place; in the memory of the host where the device has no float64."""
    if total is None:
        return (term if has_float64(term.device) else term.cpu()).double()
    return total.add_(term.to(total.device))


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given, for whoever measures its time."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
