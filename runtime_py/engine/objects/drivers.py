"""The functions that the engine calls: from objects on disk where they are there, else compiled by another process."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from export.contract.errors import InputError
from runtime_py.engine.objects import store
from runtime_py.engine.objects.memory import addresses
from runtime_py.engine.objects.wanted import LOOP, Wanted
from runtime_py.machine.processor import Processor, this_processor
from runtime_py.system.compilation import announce
from runtime_py.system.sources import ROOT

Function = Callable[..., int]
_NUMBERS = 9
_known: dict[Wanted, int] = {}


def drivers(wanted: Iterable[Wanted]) -> dict[Wanted, int]:
    """Addresses of all that is wanted. Raises RuntimeError when something cannot be compiled."""
    asked = dict.fromkeys(wanted)
    new = {one: store.find(one) for one in asked if one not in _known}
    missing = [one for one, code in new.items() if code is None]
    if missing:
        announce()
        new.update(_compiled(missing))
    if new:
        found = addresses({one.symbol: code for one, code in new.items() if code is not None})
        _known.update({one: found[one.symbol] for one in new})
    return {one: _known[one] for one in asked}


@cache
def run_steps(isa: str) -> Function:
    """The loop (engine/loop/loop.py), to be called with its nine numbers."""
    wanted = Wanted(LOOP, "", None, isa)
    return ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_int64] * _NUMBERS)(drivers([wanted])[wanted])


def _compiled(missing: list[Wanted]) -> dict[Wanted, bytes]:
    own, this = store.folder(), this_processor()
    if own is not None:
        try:
            compile_into(own, missing, this)
            store.forget_old(own)
            return {one: store.read(store.path_in(own, one, this), one, this) for one in missing}
        except OSError as error:
            print(f"[compiled kernels are not kept: {error.strerror or error}]", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="athena-") as place:
        compile_into(Path(place), missing, this)
        return {one: store.read(store.path_in(Path(place), one, this), one, this) for one in missing}


def compile_into(place: Path, missing: Iterable[Wanted], processor: Processor) -> None:
    """Have another process compile for a processor, which may be another machine's, and write the objects to a folder.

    Another one, because what Numba compiles for is fixed in a process, and so that its memory is given back. Raises
    OSError where they cannot be written, RuntimeError where the compiler fails, InputError where there is none.
    """
    order = {"place": str(place), "processor": asdict(processor), "wanted": [asdict(one) for one in missing]}
    command = [sys.executable, "-c", _START.format(root=str(ROOT)), json.dumps(order)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        answer: Any = done.stdout.strip().splitlines()[-1:] or [""]
        if answer[0].startswith("OSError "):
            raise OSError(answer[0].removeprefix("OSError "))
        if "No module named 'numba'" in last:
            raise InputError(
                "kernels that are not on this machine need Numba to be compiled; or make them elsewhere: "
                "athena-export warmup OUT --machine NAME -o KERNELS, and here warmup OUT --kernels KERNELS"
            )
        raise RuntimeError(f"kernels could not be compiled: {last}")


# What lies in the current folder is not ours, so it is not searched.
_START = (
    "import sys; sys.path[:] = [{root!r}, *filter(None, sys.path)]; "
    "from runtime_py.engine.objects.compiling import main; main(sys.argv[1])"
)
