"""Drivers: the compiled function of each kind of step, which the loop calls by its address.

A model needs the drivers of the kinds and widths that it has, and no others; each is an object of its own
(engine/objects/). A driver is made by a function make(kind, machine), named in steps/makers.py, that returns what Numba
is to compile: a function of nine int64 numbers (see run_steps) without a result. It may hold nothing but constants.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from runtime_py.engine.kernels.reading import reading
from runtime_py.engine.steps.table import ARGUMENTS, KINDS, NAMES
from runtime_py.machine.isa import Tag

SIGNATURE = types.void(*[types.int64] * 9)


class Machine(NamedTuple):
    """What drivers are compiled for."""

    isa: Tag
    offset: int  # of the instruction set's weights
    width: Tag | None  # of the step's codes, where it is a product with codes


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
    """For compiled code: call the driver at an address; 0, or it has failed."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        function = ir.FunctionType(ir.IntType(32), [argument.type for argument in args[1:]])
        return builder.call(builder.inttoptr(args[0], ir.PointerType(function)), args[1:])

    return types.int32(types.int64, *SIGNATURE.args), codegen
