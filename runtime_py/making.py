"""Kernels of a whole model ahead of time: for this machine, or in a folder for another one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from export.contract.errors import InputError
from runtime_py.engine.engine import Engine
from runtime_py.engine.objects import store
from runtime_py.engine.objects.drivers import compile_into, drivers
from runtime_py.engine.objects.wanted import Wanted
from runtime_py.load import open_model
from runtime_py.machine.processor import aimed_at, processor


def make(model: Path, machine: str, output: Path, cache_bits: int = 16) -> list[int]:
    """Compile all that a model needs on a machine into a folder; the bytes of each object.

    The plan is that of the other machine: which widths there are depends on its instructions. Raises InputError.
    """
    wanted_processor = processor(machine)
    with aimed_at(wanted_processor):
        runner, why = open_model(model, mapped=True, cache_bits=cache_bits)
        if why:
            raise InputError(f"{model} has no kernels to compile: {why}")
        wanted = _wanted(runner)
    output.mkdir(parents=True, exist_ok=True)
    compile_into(output, wanted, wanted_processor)
    return [store.path_in(output, one, wanted_processor).stat().st_size for one in wanted]


def ready(model: Path, cache_bits: int = 16, kernels: Path | None = None) -> tuple[str, str | None, int]:
    """Have all that a model needs here on disk and try it once.

    kernels: a folder of make() for this machine. Returns why the model is interpreted ("" when it is not), where the
    objects are, and how many came from `kernels`. Raises InputError.
    """
    runner, why = open_model(model, cache_bits=cache_bits)
    taken = 0
    if not why:
        wanted = _wanted(runner)
        taken = 0 if kernels is None else store.take(kernels, wanted)
        drivers(wanted)
    runner.forward(runner.new_state(), [0], last_only=True)
    if not why:
        runner.step([runner.new_state(), runner.new_state()], [0, 0])  # what a server with several clients runs
    place = store.folder()
    return why, None if place is None else str(place), taken


def _wanted(runner: Any) -> Sequence[Wanted]:
    assert isinstance(runner, Engine)
    return runner.wanted()
