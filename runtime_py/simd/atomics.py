"""What a pool of threads needs inside compiled code: a shared counter, a barrier, and giving up the processor."""

from __future__ import annotations

import numba as nb
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from runtime_py.machine.processor import target
from runtime_py.simd.vectors import I32, I64, call, pointer

_SPINS = 4000  # polls before a waiting thread offers its core to others


@intrinsic
def fetch_add(typingctx, address, amount):
    """Atomically add to the int64 at `address`; the value before."""

    def codegen(context, builder, signature, args):
        return builder.atomic_rmw("add", pointer(builder, args[0], I64), args[1], "acq_rel")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def load_acquire(typingctx, address):
    """Atomic read of the int64 at `address`."""

    def codegen(context, builder, signature, args):
        return builder.load_atomic(pointer(builder, args[0], I64), "acquire", 8)

    return types.int64(types.int64), codegen


@intrinsic
def store_release(typingctx, address, value):
    """Atomic write of the int64 at `address`."""

    def codegen(context, builder, signature, args):
        builder.store_atomic(args[1], pointer(builder, args[0], I64), "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def pause(typingctx):
    """Tell the core that this is a waiting loop."""

    def codegen(context, builder, signature, args):
        if target().architecture == "x86_64":
            call(builder, "llvm.x86.sse2.pause", ir.VoidType(), [])
        elif target().architecture == "aarch64":
            call(builder, "llvm.aarch64.hint", ir.VoidType(), [ir.Constant(I32, 1)])
        return context.get_dummy_value()

    return types.void(), codegen


give_way = types.ExternalFunction("SwitchToThread" if target().system == "win32" else "sched_yield", types.int32())


@nb.njit(cache=True)
def barrier(address, threads):
    """Wait until all threads are here. address: two int64, arrivals and generation, 64 bytes apart, zero at first."""
    if threads == 1:
        return
    generation = load_acquire(address + 64)
    if fetch_add(address, 1) == threads - 1:
        store_release(address, 0)
        store_release(address + 64, generation + 1)
        return
    spins = 0
    while load_acquire(address + 64) == generation:
        pause()
        spins += 1
        if spins > _SPINS:
            give_way()
            spins = 0
