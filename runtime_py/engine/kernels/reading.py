"""Records (records/record.py) in compiled code."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from runtime_py.engine.records.call import Call
from runtime_py.engine.records.group_matrix import GroupMatrix
from runtime_py.engine.records.record import Record
from runtime_py.engine.records.stored_matrix import StoredMatrix


def reading(kind: type[Record[Any]], skip: int = 0) -> tuple[Any, Any]:
    """What an intrinsic needs to read a record at an address: the type of its values, and the code that loads them."""
    typed = [types.float32 if name in kind.reals() else types.int64 for name in kind.names()]

    def load(context: Any, builder: Any, result: Any, address: Any) -> Any:
        values = []
        for place, type_ in enumerate(typed, start=skip):
            stored = context.get_value_type(type_)
            at = builder.add(address, ir.Constant(ir.IntType(64), 8 * place))
            values.append(builder.load(builder.inttoptr(at, stored.as_pointer()), align=8))
        return context.make_tuple(builder, result, values)

    return types.BaseTuple.from_types(typed, kind.Values), load


def reader(kind: type[Record[Any]], skip: int = 0) -> Any:
    """For compiled code: read(address) is the record's named tuple of int64 and float32; skip: numbers before it."""
    result, load = reading(kind, skip)

    @intrinsic
    def read(typingctx: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return load(context, builder, signature.return_type, args[0])

        return result(types.int64), codegen

    return read


read_call, read_matrix, read_groups = (reader(kind) for kind in (Call, StoredMatrix, GroupMatrix))
