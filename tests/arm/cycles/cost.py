"""What a kernel costs: its loop found in the assembly, and that loop with what stands around it."""

from __future__ import annotations

from dataclasses import dataclass

from tests.arm.cycles.assembly import Function, functions
from tests.arm.cycles.boards import Board
from tests.arm.cycles.kernels import Kernel
from tests.arm.cycles.loops import Loop, around, loops, once_round
from tests.arm.cycles.mca import measured


@dataclass(frozen=True)
class Cost:
    """Cycles of a product on one core: in the loop, and with its share of what is around it."""

    kernel: Kernel
    loop: float
    whole: float
    instructions: float  # of a product, in the loop

    def bytes_a_second(self, board: Board) -> float:
        """Stored bytes that all cores use up in a second, of a whole row."""
        return self.kernel.bits / 8 / (self.whole * self.kernel.shared) * board.clock * board.cores

    def of_memory(self, board: Board) -> float:
        """Cycles that it needs for a stored number, over those in which memory gives it."""
        return board.bandwidth / self.bytes_a_second(board)

    def operations(self, board: Board) -> float:
        """Multiplications and additions of all cores in a second."""
        return 2 / self.whole * board.clock * board.cores


def cost(text: str, kernel: Kernel, board: Board) -> Cost:
    """Raises LookupError where the loop is not to be found."""
    function, loop, parent = _found(text, kernel)
    code = once_round(function, loop)
    products = kernel.counted(code)
    inner = measured(code, board)
    before, behind = around(function, loop, parent)
    rounds = max(round((kernel.around - kernel.counted(before + behind)) / products), 1)
    outer = measured([*before, *code * rounds, *behind], board, 6)
    return Cost(kernel, inner.cycles / products, outer.cycles / (rounds * products), inner.instructions / products)


def _found(text: str, kernel: Kernel) -> tuple[Function, Loop, Loop | None]:
    """The loop with the most products a round, of several the one of the fewest instructions, and its parent."""
    best: tuple[tuple[int, int], Function, Loop, list[Loop]] | None = None
    for name, function in functions(text).items():
        if kernel.function not in name:
            continue
        every = loops(function)
        for loop in every:
            code = once_round(function, loop)
            rank = kernel.counted(code), -len(code)
            if rank[0] and kernel.accept(code) and (best is None or rank > best[0]):
                best = rank, function, loop, every
    if best is None:
        raise LookupError(f"{kernel.title}: no loop with products in {kernel.function}")
    _, function, loop, every = best
    outer = [other for other in every if loop.blocks < other.blocks]
    return function, loop, min(outer, key=lambda other: len(other.blocks)) if outer else None
