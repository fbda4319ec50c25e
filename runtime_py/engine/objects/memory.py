"""Objects in memory: LLVM's linker puts their code where it can run. No compiler takes part."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

import llvmlite.binding as llvm

from runtime_py.machine.processor import this_processor

_loaded: list[Any] = []  # linkers, whose code must stay where it is for as long as this process runs


@cache
def _machine() -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_triple(this_processor().triple)


def addresses(objects: Mapping[str, bytes]) -> dict[str, int]:
    """The address of each function, by its symbol, from the object that has it. They stay for good.

    Raises RuntimeError where LLVM finds no such function in an object.
    """
    return {symbol: _address(symbol, code) for symbol, code in objects.items()}


def _address(symbol: str, code: bytes) -> int:
    """A linker of its own for every object, set up as Numba has it on this architecture (machine/processor.py)."""
    module = llvm.parse_assembly("")
    module.triple = this_processor().triple
    together = this_processor().lies_together and sys.platform != "win32"
    linker = llvm.create_mcjit_compiler(module, _machine().create_target_machine(jit=True), use_lmm=together)
    linker.add_object_file(llvm.ObjectFileRef.from_data(code))
    linker.finalize_object()
    _loaded.append(linker)
    address = int(linker.get_function_address(symbol))
    if not address:
        raise RuntimeError(f"an object without its function: {symbol}")
    return address
