"""The functions of emit.py as machine code of this processor, or as text of another one's."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np

from export.contract.operators.bit_planes import planes_of
from tests.benchmarks.planes.emit import COLUMNS, ByBytes, Planes

llvm.initialize_all_targets()
llvm.initialize_all_asmprinters()
# What each instruction set is compiled for: processor, features.
PROCESSORS = {"avx512": ("icelake-server", ""), "avx2": ("haswell", ""), "portable": ("x86-64", "")}
NEEDS = {"avx512": {"avx512f", "avx512bw", "avx512vl", "avx512vnni", "avx512vpopcntdq"}, "avx2": {"avx2"}}
_KEPT: list[object] = []
Product = Callable[[int, int, int, int, int], None]


def available() -> list[str]:
    """Instruction sets of emit.py that this processor runs."""
    has = {name for name, on in llvm.get_host_cpu_features().items() if on}
    x86 = llvm.get_process_triple().startswith("x86_64")
    return [isa for isa in PROCESSORS if x86 and has.issuperset(NEEDS.get(isa, ()))]


def machine(triple: str, cpu: str, features: str) -> llvm.TargetMachine:
    return llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, features=features, opt=3, jit=False)


def _optimized(text: str, where: llvm.TargetMachine, unrolled: bool = True) -> llvm.ModuleRef:
    module = llvm.parse_assembly(text)
    module.triple, module.data_layout = where.triple, str(where.target_data)
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_unrolling = unrolled
    builder = llvm.create_pass_builder(where, options)
    builder.getModulePassManager().run(module, builder)
    return module


def compiled(kind: type[Planes] | type[ByBytes], isa: str, p: int, q: int) -> Product:
    """function(weights, activations, blocks, rows, sums) for this processor."""
    name = f"{kind.__name__}_{isa}_{p}_{q}".lower()
    where = machine(llvm.get_process_triple(), *PROCESSORS[isa])
    module = _optimized(str(kind(name, isa, p, q).build()), where)
    engine = llvm.create_mcjit_compiler(module, where)
    engine.finalize_object()
    _KEPT.append(engine)
    return ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 5)(engine.get_function_address(name))  # type: ignore[return-value]


def cycles(kind: type[Planes] | type[ByBytes], isa: str, p: int, q: int, cpu: str = "cortex-a76") -> float | None:
    """Cycles of one block on an ARM core by llvm-mca's model of it; None where that is not installed."""
    tool = next((found for n in ("llvm-mca", "llvm-mca-19", "llvm-mca-14") if (found := shutil.which(n))), None)
    if tool is None:
        return None
    where = machine("aarch64-linux-gnu", cpu, "+dotprod" if isa == "neondot" else "")
    text = where.emit_assembly(_optimized(str(kind("block", isa, p, q).build()), where, unrolled=False))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "block.s"
        path.write_text(inner_loop(text))
        command = [tool, "-mtriple=aarch64-linux-gnu", f"-mcpu={cpu}", "-iterations=200", str(path)]
        found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    total = re.search(r"Total Cycles:\s+(\d+)", found.stdout)
    if total is None:
        raise RuntimeError(f"llvm-mca: {found.stderr[:500]}")
    return int(total[1]) / 200


def inner_loop(text: str) -> str:
    """The instructions of assembler text between a label and the branch back to it, without another label between."""
    label, found = "", list[str]()
    for line in text.split("\n"):
        if name := re.match(r"(\.L\w+):", line):
            label, found = name[1], []
            continue
        found.append(line)
        if label and re.match(rf"\s+(b\.\w+|cbnz|tbn?z)\s.*{re.escape(label)}\b", line):
            return "\n".join(found) + "\n"
    raise ValueError("no loop")


def plane_bytes(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes [N, K] as blocks of `bits` planes of 64 bytes: uint8 [N, K / 512, bits, 64]."""
    planes = planes_of(codes, bits).reshape(bits, len(codes), -1, COLUMNS // 8)
    return np.ascontiguousarray(planes.transpose(1, 2, 0, 3))


def code_bytes(codes: np.ndarray, bits: int) -> np.ndarray:
    """The same codes as ByBytes reads them: uint8 [N, K / 512, bits, 64]."""
    parts = []
    for low, own in {1: ((0, 1),), 2: ((0, 2),), 3: ((0, 2), (2, 1)), 4: ((0, 4),)}[bits]:
        some = ((codes >> low) & ((1 << own) - 1)).reshape(len(codes), -1, own, 8 // own, 64)
        places = np.arange(0, 8, own).reshape(-1, 1)
        parts.append((some << places).sum(axis=3))
    return np.ascontiguousarray(np.concatenate(parts, axis=2).astype(np.uint8))
