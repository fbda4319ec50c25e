"""Instruction sets the kernels are lowered for, and which of them this machine has.

An instruction set is passed to every kernel as a tag: a value without data whose Numba type names it. So one process
can compile a kernel for several of them (the tests do), and the on-disk cache keeps them apart.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import llvmlite.binding as llvm
from numba.core import config, types
from numba.core.imputils import lower_constant
from numba.extending import NativeValue, models, register_model, typeof_impl, unbox

from export.contract.errors import InputError


@dataclass(frozen=True)
class Tag:
    """A compile-time constant: kernels are compiled once for each value."""

    kind: str
    value: str | int


class TagType(types.Type):
    """Numba type of one Tag."""

    def __init__(self, kind: str, value: str | int) -> None:
        self.kind, self.value = kind, value
        super().__init__(name=f"Tag({kind}={value})")


@register_model(TagType)
class _TagModel(models.OpaqueModel):
    pass


@typeof_impl.register(Tag)
def _typeof_tag(value, context):
    return TagType(value.kind, value.value)


@unbox(TagType)
def _unbox_tag(typ, obj, c):
    return NativeValue(c.context.get_dummy_value())


@lower_constant(TagType)
def _constant_tag(context, builder, typ, value):
    return context.get_dummy_value()


# Best first. The features are LLVM's names of what the lowering needs.
FEATURES: dict[str, tuple[str, ...]] = {
    "avx512vbmi": ("avx512f", "avx512bw", "avx512vl", "avx512vnni", "avx512vbmi"),
    "avx512": ("avx512f", "avx512bw", "avx512vl", "avx512vnni"),
    "avx2vnni": ("avx2", "fma", "f16c", "avxvnni"),
    "avx2": ("avx2", "fma", "f16c"),
    "neondot": ("neon", "dotprod"),
    "neon": ("neon",),
    "portable": (),
}
ISAS = {name: Tag("isa", name) for name in FEATURES}
# Where the dot product is unsigned x signed, weights are stored plus 128 and the sums start at -128 * sum(activations).
WEIGHT_OFFSET = {name: 128 if name in ("avx512vbmi", "avx512", "avx2vnni") else 0 for name in FEATURES}
AMX_FEATURES = ("amx-tile", "amx-int8")


@cache
def machine_features() -> frozenset[str]:
    """LLVM feature names that Numba compiles for on this machine."""
    if config.CPU_FEATURES is not None:
        return frozenset(f[1:] for f in config.CPU_FEATURES.split(",") if f.startswith("+"))
    if config.CPU_NAME and config.CPU_NAME != "host":
        return frozenset()  # a named processor without a feature list: nothing beyond the portable vectors is certain
    found = {name for name, on in llvm.get_host_cpu_features().items() if on}
    if platform.machine() in ("aarch64", "arm64"):
        found |= _arm_features()
    return frozenset(found)


def _arm_features() -> set[str]:
    """LLVM may report a generic host on ARM; every 64-bit ARM has NEON, the dot product is listed by the kernel."""
    found = {"neon"}
    cpuinfo = Path("/proc/cpuinfo")
    if platform.system() == "Darwin" or (cpuinfo.exists() and "asimddp" in cpuinfo.read_text(errors="replace")):
        found.add("dotprod")
    return found


def available() -> list[str]:
    """Names of the instruction sets this machine can run, best first."""
    return [name for name, needs in FEATURES.items() if machine_features().issuperset(needs)]


def pick() -> str:
    """The instruction set to use: ATHENA_ISA when set, else the best available. Raises InputError on a wrong name."""
    found = available()
    wanted = os.environ.get("ATHENA_ISA")
    if not wanted:
        return found[0]
    if wanted not in found:
        raise InputError(f"ATHENA_ISA={wanted}: this machine has {', '.join(found)}")
    return wanted
