"""llvm-mca: how many cycles a core, as LLVM models it, takes for a sequence of instructions that repeats."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache

from tests.arm.cycles.boards import Board

OLDEST = 17  # whose Neoverse N1 is a model of its own
_TOTAL = re.compile(r"^Total Cycles:\s+(\d+)", re.M)
_ONCE = 4  # rounds until the pipelines are full


@dataclass(frozen=True)
class Round:
    """What one round costs. cycles: LLVM's, or what decoding takes if that is longer."""

    cycles: float
    instructions: int


@cache
def tool() -> str | None:
    """The newest llvm-mca that there is, if it is new enough."""
    for name in ("llvm-mca", *(f"llvm-mca-{version}" for version in range(30, OLDEST - 1, -1))):
        if found := shutil.which(name):
            said = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
            version = re.search(r"version (\d+)", said)
            if version and int(version[1]) >= OLDEST:
                return found
    return None


def measured(code: list[str], board: Board, rounds: int = 24) -> Round:
    """A round of this code, from the difference of two runs of different length. Raises RuntimeError."""
    instructions = [line for line in code if not line.startswith(("bl ", "bl\t", "ret"))]
    few, many = (_cycles(instructions, board, n) for n in (_ONCE, _ONCE + rounds))
    return Round(max((many - few) / rounds, len(instructions) / board.wide), len(instructions))


def _cycles(code: list[str], board: Board, iterations: int) -> int:
    asked = [tool() or "llvm-mca", "-mtriple=aarch64", f"-mcpu={board.model}", f"-iterations={iterations}",
             "-resource-pressure=false", "-instruction-info=false"]  # fmt: skip
    done = subprocess.run(asked, input="\n".join(code) + "\n", capture_output=True, text=True)
    found = _TOTAL.search(done.stdout)
    if done.returncode or not found:
        raise RuntimeError(f"llvm-mca: {(done.stderr.strip().splitlines() or ['no cycles'])[0]}")
    return int(found[1])
