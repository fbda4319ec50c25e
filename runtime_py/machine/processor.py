"""Processors that kernels are compiled for: this one, and some by name, for which another machine can compile.

What is compiled for a processor by name runs on every processor of the same architecture and system that has all it
needs; what is compiled for this one is tuned to it and found again by it alone.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import llvmlite.binding as llvm

from export.contract.errors import InputError

_V3 = ("avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "popcnt", "sse4.2", "ssse3")
_AVX512 = (*_V3, "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni", "avx512vbmi")


@dataclass(frozen=True)
class Processor:
    """What LLVM is told, and what a machine must have to run the result."""

    name: str  # of those below, or host-DIGEST
    triple: str
    cpu: str  # LLVM's name, which decides the order of instructions
    features: str  # as LLVM takes them: "+neon,-rcpc"

    @property
    def needs(self) -> frozenset[str]:
        """LLVM's names of the features that code may use."""
        return frozenset(f[1:] for f in self.features.split(",") if f.startswith("+"))

    @property
    def architecture(self) -> str:
        """x86_64 or aarch64, or what else LLVM calls it."""
        return {"arm64": "aarch64", "amd64": "x86_64"}.get(self.triple.split("-")[0], self.triple.split("-")[0])

    @property
    def lies_together(self) -> bool:
        """Whether the parts of an object have to lie beside one another in memory.

        On x86 an object refers to its constants by whole addresses, wherever these lie. ARM's instructions reach 4 GB,
        so there llvmlite's memory manager keeps the parts together, as for Numba's own code. (On x86 that manager ends
        the process over objects with many constants, whose room it does not count to the full.)
        """
        return self.architecture == "aarch64"

    @property
    def system(self) -> str:
        """sys.platform of the machine."""
        return next((name for part, name in _SYSTEMS.items() if part in self.triple), "linux")


_SYSTEMS = {"windows": "win32", "darwin": "darwin", "apple": "darwin", "linux": "linux"}


def _linux(name: str, architecture: str, cpu: str, has: tuple[str, ...], lacks: tuple[str, ...] = ()) -> Processor:
    features = ",".join([*(f"+{f}" for f in has), *(f"-{f}" for f in lacks)])
    return Processor(name, f"{architecture}-unknown-linux-gnu", cpu, features)


# Best first, of those that one machine can run. Features that a processor's name implies and that no machine here can
# be asked for are switched off.
NAMED: Mapping[str, Processor] = {
    p.name: p
    for p in (
        _linux("avx512", "x86_64", "icelake-server", _AVX512),
        _linux("x86-64-v3", "x86_64", "x86-64-v3", _V3),
        _linux("aarch64-i8mm", "aarch64", "generic", ("neon", "dotprod", "fullfp16", "lse", "i8mm")),
        _linux("rpi5", "aarch64", "cortex-a76", ("neon", "dotprod", "fullfp16", "lse"), ("rcpc", "rdm")),
        _linux("rpi4", "aarch64", "cortex-a72", ("neon",)),
        _linux("aarch64", "aarch64", "generic", ("neon",)),
    )
}
THIS = "this"


def processor(name: str) -> Processor:
    """The processor called so, or this machine's. Raises InputError when there is none."""
    if name == THIS:
        return this_processor()
    if name not in NAMED:
        raise InputError(f"--machine {name!r} is unknown; choose one of {', '.join((THIS, *NAMED))}")
    return NAMED[name]


@cache
def this_processor() -> Processor:
    """This machine's, or the one that NUMBA_CPU_NAME and NUMBA_CPU_FEATURES name."""
    cpu, features = os.environ.get("NUMBA_CPU_NAME"), os.environ.get("NUMBA_CPU_FEATURES")
    if features is None:
        features = "" if cpu and cpu != "host" else _host_features()
    if not cpu or cpu == "host":
        cpu = llvm.get_host_cpu_name()
    triple = llvm.get_process_triple()
    told = hashlib.sha256(f"{triple}\0{cpu}\0{features}".encode()).hexdigest()[:12]
    return Processor(f"host-{told}", triple, cpu, features)


def _host_features() -> str:
    try:
        found = llvm.get_host_cpu_features()
    except RuntimeError:  # LLVM does not know how to ask
        found = {}
    arm = platform.machine() in ("aarch64", "arm64")
    return ",".join(("+" if on else "-") + name for name, on in {**found, **(_arm_features() if arm else {})}.items())


_target: list[Processor] = []  # another one than this machine's, while that is aimed at


def target() -> Processor:
    """What this process plans and compiles for."""
    return _target[-1] if _target else this_processor()


@contextmanager
def aimed_at(wanted: Processor) -> Iterator[None]:
    """Have this process plan, or compile, for a processor. No kernel may be imported before it that compiles in it."""
    _target.append(wanted)
    try:
        yield
    finally:
        _target.pop()


# Bits of AT_HWCAP and AT_HWCAP2 on 64-bit ARM (Linux, arch/arm64/include/uapi/asm/hwcap.h) by LLVM's names.
_HARDWARE = {"neon": 1 << 1, "lse": 1 << 8, "fullfp16": 1 << 9 | 1 << 10, "dotprod": 1 << 20}
_MORE_HARDWARE = {"i8mm": 1 << 13}
_AT_HWCAP, _AT_HWCAP2 = 16, 26


def _arm_features() -> dict[str, bool]:
    """LLVM may report a generic host on ARM; the system says what there is. Every 64-bit ARM has NEON."""
    found = {"neon"}
    if sys.platform == "darwin":
        found |= {"dotprod", "lse", "fullfp16"}
        found |= {"i8mm"} if _apple_has("FEAT_I8MM") else set()
    elif sys.platform == "linux":
        ask = ctypes.CDLL(None).getauxval
        ask.argtypes, ask.restype = [ctypes.c_ulong], ctypes.c_ulong
        for kind, named in ((_AT_HWCAP, _HARDWARE), (_AT_HWCAP2, _MORE_HARDWARE)):
            bits = int(ask(kind))
            found |= {name for name, mask in named.items() if bits & mask == mask}
    return dict.fromkeys(sorted(found), True)


def _apple_has(feature: str) -> bool:
    """By its name in Arm's manuals (developer.apple.com, "Determining instruction set characteristics")."""
    value, size = ctypes.c_int(0), ctypes.c_size_t(ctypes.sizeof(ctypes.c_int))
    ask = ctypes.CDLL(None).sysctlbyname
    name = f"hw.optional.arm.{feature}".encode()
    return ask(name, ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0)) == 0 and value.value == 1
