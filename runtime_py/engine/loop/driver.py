"""Drivers: the compiled function of each kind of step, which the loop calls by its address.

A model compiles the drivers of the kinds and widths that it has, and no others; each is kept on disk on its own
(jit_cache.py). A driver is made by a function make(kind, machine) that returns what Numba is to compile: a function of
nine int64 numbers (see run_steps) without a result. It may hold nothing but constants, which are the key by which it is
found on disk.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from runtime_py.engine.records.record import reading
from runtime_py.engine.steps.table import ARGUMENTS, KINDS, NAMES
from runtime_py.simd.isa import Tag

SIGNATURE = types.void(*[types.int64] * 9)


class Machine(NamedTuple):
    """What drivers are compiled for."""

    isa: Tag
    offset: int  # of the instruction set's weights
    width: Tag | None  # of the step's codes, where it is a product with codes


Maker = Callable[[Tag, Machine], Any]
_READERS = {name: reading(kind, ARGUMENTS) for name, kind in zip(NAMES, KINDS)}


@intrinsic
def read_step(typingctx: Any, kind: Any, address: Any) -> Any:
    """For compiled code: the values of the step at an address; kind: Tag("step", name of its kind)."""
    result, load = _READERS[kind.value]

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return load(context, builder, signature.return_type, args[1])

    return result(kind, types.int64), codegen


@intrinsic
def drive(typingctx: Any, address: Any, call: Any, step: Any, number: Any, first: Any, tokens: Any, counter: Any,
          thread: Any, threads: Any, scratch: Any) -> Any:  # fmt: skip
    """For compiled code: call the driver at an address. What it raises is raised."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        convention = context.call_conv
        function = convention.get_function_type(types.void, SIGNATURE.args)
        status, _ = convention.call_function(
            builder, builder.inttoptr(args[0], ir.PointerType(function)), types.void, SIGNATURE.args, args[1:]
        )
        with builder.if_then(status.is_error, likely=False):
            convention.return_status_propagate(builder, status)
        return context.get_dummy_value()

    return types.void(types.int64, *SIGNATURE.args), codegen


@cache
def driver(make: Maker, number: int, machine: Machine) -> tuple[int, Any]:
    """The address of a driver for the kind of this number, compiled or from disk, and what keeps it alive."""
    dispatcher = make(Tag("step", NAMES[number]), machine)
    dispatcher.compile(SIGNATURE)
    compiled = dispatcher.overloads[SIGNATURE.args]
    address = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)
    assert address
    return address, dispatcher
