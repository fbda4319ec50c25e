"""A driver's assembly as a program for ARM that qemu runs: tests/arm/call.c calls it on an image of memory."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.arm.cycles.boards import Board

GCC, QEMU = "aarch64-linux-gnu-gcc", "qemu-aarch64-static"
MISSING = [name for name in (GCC, QEMU) if not shutil.which(name)]


def program(board: Board, assembly: Path, symbol: str, folder: Path) -> Path:
    """The program; it has no libraries to find."""
    made = folder / "call"
    source = [str(assembly), str(Path(__file__).with_name("call.c"))]
    march = f"-march={board.clang}" + "+lse" * ("dotprod" in board.clang)
    subprocess.run([GCC, "-O1", "-static", march, f"-DDRIVER={symbol}", *source, "-o", str(made)], check=True)
    return made
