"""Kernels of a whole model ahead of time: for this machine, or in a folder for another one; and those of the package.

python -m runtime_py.making MACHINE ... compiles what most models need into the package, before a wheel is made.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from export.contract.errors import InputError
from runtime_py.engine.engine import Engine
from runtime_py.engine.objects import store
from runtime_py.engine.objects.drivers import compile_into, drivers
from runtime_py.engine.objects.wanted import LOOP, Wanted
from runtime_py.engine.steps import table
from runtime_py.engine.steps.makers import APART, PLAIN
from runtime_py.load import open_model
from runtime_py.machine.isa import available
from runtime_py.machine.processor import Processor, aimed_at, processor
from runtime_py.machine.widths import HALVES, RAW, TRELLIS, WIDTHS, Tag

# Steps of a decoder of Llama's kind, and the widths that presets store at 2 to 4 bits: trellis codes of up to 4, scalar
# codes where a matrix is small or gets more.
_COMMON = (table.EMBED, table.NORM, table.QUANTIZE, table.ACTIVATE, table.ADD, table.KV_APPEND, table.ATTEND)
_CODES = [WIDTHS[bits] for bits in range(2, 7)]
_ANY_LEVELS, _SUMS = [TRELLIS[bits] for bits in range(1, 5)], [HALVES[bits] for bits in range(2, 5)]


def make(model: Path, machine: str, output: Path, cache_bits: int = 16, bits: int | None = None) -> list[int]:
    """Compile all that a model needs on a machine into a folder; the bytes of each object.

    bits: of nested codes, as open_model takes them. The plan is that of the other machine: which widths there are
    depends on its instructions. Raises InputError.
    """
    wanted_processor = processor(machine)
    with aimed_at(wanted_processor):
        runner, why = open_model(model, mapped=True, cache_bits=cache_bits, bits=bits)
        if why:
            raise InputError(f"{model} has no kernels to compile: {why}")
        wanted = _wanted(runner)
    output.mkdir(parents=True, exist_ok=True)
    compile_into(output, wanted, wanted_processor)
    return [store.path_in(output, one, wanted_processor).stat().st_size for one in wanted]


def ready(
    model: Path, cache_bits: int = 16, bits: int | None = None, kernels: Path | None = None
) -> tuple[str, str | None, int]:
    """Have all that a model needs here on disk and try it once.

    kernels: a folder of make() for this machine. Returns why the model is interpreted ("" when it is not), where the
    objects are, and how many came from `kernels`. Raises InputError.
    """
    runner, why = open_model(model, cache_bits=cache_bits, bits=bits)
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


def common(machine: Processor) -> list[Wanted]:
    """What most models need on a machine."""
    isa = available(machine)[0]
    tags = [RAW, *_CODES, *(_ANY_LEVELS if isa == "avx512vbmi" else _SUMS)]  # as records/stored_matrix.py takes paths
    found = [Wanted(LOOP, "", None, isa)]
    for makers in (PLAIN, APART):
        found += [Wanted(makers[step], table.NAMES[step], None, isa) for step in _COMMON]
        found += [Wanted(makers[table.MATMUL], table.NAMES[table.MATMUL], _width(tag), isa) for tag in tags]
    return found


def _width(tag: Tag) -> tuple[str, int]:
    return tag.kind, int(tag.value)


def ship(machines: Sequence[str], place: Path = store.SHIPPED) -> int:
    """Put the common kernels of machines into a folder, in place of what is there; their bytes."""
    place.mkdir(exist_ok=True)
    for path in place.glob(f"*{store.SUFFIX}"):
        path.unlink()
    for name in machines:
        compile_into(place, common(processor(name)), processor(name))
    return sum(path.stat().st_size for path in place.glob(f"*{store.SUFFIX}"))


def _wanted(runner: Any) -> Sequence[Wanted]:
    assert isinstance(runner, Engine)
    return runner.wanted()


if __name__ == "__main__":
    print(f"{ship(sys.argv[1:])} bytes in {store.SHIPPED}")
