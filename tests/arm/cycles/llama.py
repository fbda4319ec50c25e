"""llama.cpp's own kernels for the same core, compiled by clang from a copy of its source. Nothing of it is kept."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.arm.cycles.boards import Board
from tests.arm.cycles.kernels import COLUMNS, Kernel

_FILES = ("quants.c", "repack.cpp")
_OPTIONS = ("-O3", "-ffast-math", "-DNDEBUG", "-D_GNU_SOURCE", "-DGGML_USE_CPU_REPACK", "-w", "-S", "-o", "-")


def _row(title: str, bits: float, function: str) -> Kernel:
    return Kernel(title, bits, function, COLUMNS)


DOTS = [
    _row("Q4_0", 4.5, "ggml_vec_dot_q4_0_q8_0"),
    _row("Q4_K", 4.5, "ggml_vec_dot_q4_K_q8_K"),
    _row("IQ4_XS", 4.25, "ggml_vec_dot_iq4_xs_q8_K"),
    _row("Q3_K", 3.4375, "ggml_vec_dot_q3_K_q8_K"),
    _row("IQ3_S", 3.4375, "ggml_vec_dot_iq3_s_q8_K"),
    _row("Q2_K", 2.625, "ggml_vec_dot_q2_K_q8_K"),
    _row("IQ2_XS", 2.3125, "ggml_vec_dot_iq2_xs_q8_K"),
    _row("Q8_0", 8.5, "ggml_vec_dot_q8_0_q8_0"),
]
# Which need the dot product instructions.
REPACKED = [
    Kernel("Q4_0 repacked, 4x4", 4.5, "ggml_gemv_q4_0_4x4_q8_0", 4 * COLUMNS),
    Kernel("Q4_0 repacked, 4x8", 4.5, "ggml_gemv_q4_0_4x8_q8_0", 4 * COLUMNS),
    Kernel("Q4_K repacked, 8x4", 4.5, "ggml_gemv_q4_K_8x4_q8_K", 8 * COLUMNS),
]
TILES = [Kernel("Q4_0 repacked, 4x4", 4.5, "ggml_gemm_q4_0_4x4_q8_0", 16 * 4 * COLUMNS, shared=16)]


def assembly(source: Path, board: Board, clang: str) -> str:
    """All kernels for a board. source: a checkout of llama.cpp. Raises RuntimeError where clang fails."""
    cpu = source / "ggml" / "src" / "ggml-cpu"
    found = []
    for name in _FILES:
        include = [f"-I{folder}" for folder in (source / "ggml" / "include", source / "ggml" / "src", cpu)]
        machine = ["--target=aarch64-linux-gnu", f"-march={board.clang}", f"-mtune={board.core}"]
        language = ["-std=c++17"] if name.endswith("cpp") else ["-std=c11"]
        command = [clang, *machine, *language, *include, *_OPTIONS, str(cpu / "arch" / "arm" / name)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if "error" in line] or ["failed"]
            raise RuntimeError(f"{clang}: {said[0].strip()}")
        found.append(done.stdout)
    return "\n".join(found)
