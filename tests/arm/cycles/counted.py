"""Instructions that our drivers run for a weight, counted by qemu-user: python -m tests.arm.cycles.counted

Whole drivers, with what the table of loops leaves out: starts and ends of rows, states of trellis codes. Needs
aarch64-linux-gnu-gcc, gcc and qemu-user (not the static one, which takes no plugins). A token costs the instructions of
a weight times the weights of the model's matrices, and what attention takes.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.arm.assembled import program
from tests.arm.cycles.boards import BOARDS, Board
from tests.arm.cycles.kernels import COLUMNS, Kernel, assemblies, assembly_file, decoding
from tests.arm.product_reference import Case

QEMU = "qemu-aarch64"
_ROWS = (40, 296)  # the difference of two counts is of 256 rows, two codebooks of trellis codes
_PATH_ROWS = 128
_TOKENS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boards", nargs="*", choices=list(BOARDS), default=list(BOARDS))
    args = parser.parse_args()
    if not shutil.which(QEMU):
        raise SystemExit(f"{QEMU} is not installed (Debian: qemu-user)")
    with tempfile.TemporaryDirectory() as scratch:
        folder, plugin = Path(scratch), Path(scratch) / "count.so"
        source = Path(__file__).with_name("count.c")
        subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", str(plugin), str(source)], check=True)
        for name in args.boards:
            board = BOARDS[name]
            print(f"\n{board.core}, instructions a weight\n\n| codes | one token | {_TOKENS} tokens |\n|---|---|---|")
            kernels = [kernel for kernel in decoding() if kernel.width and kernel.width[0] in ("bits", "halves")]
            assemblies(board, kernels, folder)
            for kernel in kernels:
                one, many = (counted(board, kernel, folder, plugin, tokens) for tokens in (1, _TOKENS))
                print(f"| {kernel.title} | {one:.3f} | {many:.3f} |", flush=True)


def counted(board: Board, kernel: Kernel, folder: Path, plugin: Path, tokens: int) -> float:
    """Instructions for a weight, of a driver whose assembly is in the folder. RuntimeError where none is said."""
    assert kernel.width is not None
    wanted, counts = kernel.wanted(board), []
    made = program(board, assembly_file(folder, wanted), wanted.symbol, folder)
    log = folder / "count.txt"
    command = ["sh", "-c", f'exec "$0" "$@" 2>{log}', QEMU, "-plugin", str(plugin), "-cpu", board.core, str(made)]
    for rows in _ROWS:
        Case(*kernel.width, rows, COLUMNS, tokens, 0.0, _PATH_ROWS).found(board.isa, command, folder)
        said = re.search(r"(\d+) instructions", log.read_text())
        if said is None:
            raise RuntimeError(f"{QEMU} counted nothing")
        counts.append(int(said[1]))
    return (counts[1] - counts[0]) / ((_ROWS[1] - _ROWS[0]) * COLUMNS)


if __name__ == "__main__":
    main()
