"""Instruction sets the kernels are lowered for, and which of them this machine has.

An instruction set is passed to every kernel as a tag: a value without data whose Numba type names it. So one process
can compile a kernel for several of them (the tests do), and the on-disk cache keeps them apart.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from export.contract.errors import InputError
from runtime_py.machine.processor import Processor, target


@dataclass(frozen=True)
class Tag:
    """A compile-time constant: kernels are compiled once for each value."""

    kind: str
    value: str | int


# Best first. The features are LLVM's names of what the lowering needs.
FEATURES: dict[str, tuple[str, ...]] = {
    "avx512vbmi": ("avx512f", "avx512bw", "avx512vl", "avx512vnni", "avx512vbmi"),
    "avx512": ("avx512f", "avx512bw", "avx512vl", "avx512vnni"),
    "avx2vnni": ("avx2", "fma", "f16c", "avxvnni"),
    "avx2": ("avx2", "fma", "f16c"),
    "neoni8mm": ("neon", "dotprod", "i8mm"),
    "neondot": ("neon", "dotprod"),
    "neon": ("neon",),
    "portable": (),
}
ISAS = {name: Tag("isa", name) for name in FEATURES}
# Where the dot product is unsigned x signed, weights are stored plus 128 and the sums start at -128 * sum(activations).
WEIGHT_OFFSET = {name: 128 if name in ("avx512vbmi", "avx512", "avx2vnni") else 0 for name in FEATURES}
AMX_FEATURES = ("amx-tile", "amx-int8")
# Rows and token vectors that fit the registers of each instruction set.
TILE = {
    "avx512vbmi": (12, 2),
    "avx512": (12, 2),
    "avx2vnni": (4, 1),
    "avx2": (3, 1),
    "neoni8mm": (4, 1),
    "neondot": (5, 1),
    "neon": (3, 1),
    "portable": (4, 1),
}
AMX_ROWS = 32  # and 32 tokens: four accumulator tiles of 16 x 16


def machine_features() -> frozenset[str]:
    """LLVM feature names that kernels are compiled for."""
    return target().needs


def available(processor: Processor | None = None) -> list[str]:
    """Names of the instruction sets a processor can run, best first; None: this machine's."""
    has = machine_features() if processor is None else processor.needs
    return [name for name, needs in FEATURES.items() if has.issuperset(needs)]


def pick() -> str:
    """The instruction set to use: ATHENA_ISA when set, else the best available. Raises InputError on a wrong name."""
    found = available()
    wanted = os.environ.get("ATHENA_ISA")
    if not wanted:
        return found[0]
    if wanted not in found:
        raise InputError(f"ATHENA_ISA={wanted}: this machine has {', '.join(found)}")
    return wanted


def has_amx() -> bool:
    """Whether code for AMX can be compiled here; whether it may run is the operating system's to say (allow_amx)."""
    return machine_features().issuperset(AMX_FEATURES)
