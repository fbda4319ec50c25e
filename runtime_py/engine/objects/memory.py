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
    module = llvm.parse_assembly("")
    module.triple = this_processor().triple
    # With llvmlite's memory manager the parts of an object lie beside one another, so that each can reach the others.
    beside = sys.platform != "win32"
    linker = llvm.create_mcjit_compiler(module, _machine().create_target_machine(jit=True), use_lmm=beside)
    for code in objects.values():
        linker.add_object_file(llvm.ObjectFileRef.from_data(code))
    linker.finalize_object()
    _loaded.append(linker)
    found = {symbol: int(linker.get_function_address(symbol)) for symbol in objects}
    missing = [symbol for symbol, address in found.items() if not address]
    if missing:
        raise RuntimeError(f"an object without its function: {', '.join(missing)}")
    return found
