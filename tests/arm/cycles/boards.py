"""The boards whose loops are looked at: their core as LLVM and clang know it, their clock and their memory."""

from __future__ import annotations

from dataclasses import dataclass

from runtime_py.machine.isa import available
from runtime_py.machine.processor import NAMED
from targets import load_target


@dataclass(frozen=True)
class Board:
    """model: the processor whose scheduling model llvm-mca takes; wide: instructions that the core decodes a cycle."""

    name: str  # of machine/processor.py and of targets/devices/
    core: str
    clang: str  # for -march
    model: str
    clock: float  # Hz
    wide: int
    cores: int = 4

    @property
    def isa(self) -> str:
        """Our instruction set there."""
        return available(NAMED[self.name])[0]

    @property
    def bandwidth(self) -> float:
        """Bytes a second, the most that any row measured of its memory gave."""
        found = load_target(self.name).constants["memory_bandwidth"]
        return found.value if found.high is None else found.high


# LLVM has no model of the Cortex-A76: for -mcpu=cortex-a76 it takes the one of the A57, whose decoder is 3 wide. The
# Neoverse N1 is the same core with other caches, so Arm's guides give both the same latencies and pipelines.
BOARDS = {
    board.name: board
    for board in (
        Board("rpi5", "cortex-a76", "armv8.2-a+dotprod+fp16", "neoverse-n1", 2.4e9, 4),
        Board("rpi4", "cortex-a72", "armv8-a", "cortex-a72", 1.8e9, 3),
    )
}
# Servers since Graviton 3 and Apple's processors since the M2: `smmla`. No memory of theirs is known here.
SERVERS = {"neoverse-n2": 5, "neoverse-v1": 8}  # LLVM's models, and what they decode a cycle
MATRICES = Board("aarch64-i8mm", "max", "armv8.2-a+dotprod+fp16+i8mm", "neoverse-n2", 3.0e9, 5)
