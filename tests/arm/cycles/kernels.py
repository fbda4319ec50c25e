"""Our kernels whose loops are looked at, and their assembly as the engine's compiler makes it for a board.

python -m tests.arm.cycles.kernels MACHINE FOLDER WANTED ... writes the assembly: what compiles is a process of its
own, because Numba's target is fixed in one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from runtime_py.engine.layout.attention import KEYS
from runtime_py.engine.objects.file import sources
from runtime_py.engine.objects.wanted import Wanted
from runtime_py.machine.isa import TILE
from runtime_py.machine.processor import NAMED, aimed_at
from tests.arm.cycles.boards import Board
from tests.arm.cycles.products import floats, halves, integers

COLUMNS = 2048  # of a row
HEAD = 64
BLOCK = 256  # columns that a tile's loop passes before its sums become floats


@dataclass(frozen=True)
class Kernel:
    """A loop in a function, and the loop around it.

    function: part of the name of the function that has it; around: products in a round of the loop around it; shared:
    products that a stored number takes part in; accept: what else is true of the loop's instructions.
    """

    title: str
    bits: float  # of a stored number
    function: str
    around: int
    shared: int = 1
    counted: Callable[[list[str]], int] = integers
    accept: Callable[[list[str]], bool] = lambda code: True
    width: tuple[str, int] | None = None
    maker: str = "products.product"
    step: str = "MatMul"

    def wanted(self, board: Board) -> Wanted:
        return Wanted(self.maker, self.step, self.width, board.isa)


def decode(title: str, kind: str, bits: int) -> Kernel:
    """One token times rows of codes."""
    return Kernel(f"{bits} bits, {title}", bits, "matvec_rows", COLUMNS, width=(kind, bits))


def decoding() -> list[Kernel]:
    """A new kind of codes is a line."""
    kinds = {"bits": "scalar codes", "halves": "trellis, levels that are sums", "trellis": "trellis, any levels"}
    found = [decode(title, kind, bits) for kind, title in kinds.items() for bits in (2, 3, 4)]
    return [*found, Kernel("8 bits, no codebook", 8, "matvec_rows", COLUMNS, width=("raw", 8))]


def prefill(board: Board) -> Kernel:
    """A tile of rows times 16 tokens, and the codes of its rows made bytes."""
    rows, vectors = TILE[board.isa]
    tokens = 16 * vectors
    return Kernel("int8 tile", 8, "matmul_item", rows * tokens * BLOCK, shared=tokens, width=("bits", 3))


def attention(part: str, rows: int) -> Kernel:
    """Query rows of one key-value head times float16 keys of HEAD numbers, or weights of KEYS keys times values."""

    def accept(code: list[str]) -> bool:
        return halves(code) > 0 and floats(code) == rows * halves(code)

    function, times = {"keys": ("block_scores", HEAD), "values": ("mix_values", KEYS)}[part]
    title, maker = f"float16 {part}, {rows} query row{'s' * (rows > 1)}", "attention.attention"
    beside = 4 if rows == 1 else 1  # vectors of 16 numbers in a loop's round (attention/products.py)
    return Kernel(title, 16, function, times * rows * 16 * beside, rows, floats, accept, None, maker, "Attend")


def attending() -> list[Kernel]:
    """Eight rows pass four by four."""
    return [attention(part, rows) for part in ("keys", "values") for rows in (1, 4)]


def assembly_file(folder: Path, wanted: Wanted) -> Path:
    """Where the assembly of a driver by today's sources is."""
    return folder / f"{wanted.name}-{sources()}.s"


def assemblies(board: Board, kernels: Iterable[Kernel], folder: Path) -> dict[Kernel, str]:
    """The text of each; what the folder has is not compiled again. Raises RuntimeError where the compiler fails."""
    asked = {kernel: kernel.wanted(board) for kernel in kernels}
    missing = [json.dumps(asdict(w)) for w in asked.values() if not assembly_file(folder, w).exists()]
    if missing:
        command = [sys.executable, "-m", __spec__.name, board.name, str(folder), *dict.fromkeys(missing)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError((done.stderr.strip().splitlines() or ["the compiler failed"])[-1])
    return {kernel: assembly_file(folder, wanted).read_text() for kernel, wanted in asked.items()}


def main() -> None:
    folder = Path(sys.argv[2])
    with aimed_at(NAMED[sys.argv[1]]):
        from runtime_py.engine.objects import compiling

        compiling.prepare()
        for order in sys.argv[3:]:
            asked = json.loads(order)
            width = None if asked["width"] is None else tuple(asked["width"])
            wanted = Wanted(asked["maker"], asked["step"], width, asked["isa"])
            assembly_file(folder, wanted).write_text(compiling.assembly(wanted))


if __name__ == "__main__":
    main()
