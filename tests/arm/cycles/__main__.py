"""Cycles of the inner loops on a Raspberry Pi, of our kernels and of llama.cpp's, without a board (`make arm-cycles`).

python -m tests.arm.cycles [--boards rpi5 rpi4] [--llama SOURCE] [--clang clang-19] [--keep FOLDER]
python -m tests.arm.cycles --servers         # the tiles of dot products and of smmla on servers' cores

Needs llvm-mca of LLVM 17 or later; llama.cpp's rows need clang and libc's headers for aarch64 beside a copy of its
source (Debian: llvm-19 clang-19 libc6-dev-arm64-cross libstdc++-12-dev-arm64-cross).
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from tests.arm.cycles import llama
from tests.arm.cycles.boards import BOARDS, MATRICES, SERVERS, Board
from tests.arm.cycles.cost import Cost, cost
from tests.arm.cycles.kernels import assemblies, attending, decoding, prefill
from tests.arm.cycles.mca import OLDEST, tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boards", nargs="*", choices=list(BOARDS), default=list(BOARDS))
    parser.add_argument(
        "--llama", type=Path, help="llama.cpp's source, whose kernels are compiled to stand beside ours"
    )
    parser.add_argument("--servers", action="store_true", help="only the tiles for many tokens, on servers' cores")
    parser.add_argument("--clang", default="clang-19")
    parser.add_argument("--keep", type=Path, help="a folder where the assembly stays, to be read or for the next run")
    args = parser.parse_args()
    if tool() is None:
        raise SystemExit(f"llvm-mca of LLVM {OLDEST} or later is not installed (Debian: llvm-19)")
    with tempfile.TemporaryDirectory() as scratch:
        for name in [] if args.servers else args.boards:
            folder = Path(args.keep or scratch)
            folder.mkdir(exist_ok=True)
            _board(BOARDS[name], folder, args.llama, args.clang)
        if args.servers:
            _servers(Path(args.keep or scratch))


def _servers(folder: Path) -> None:
    """Products a cycle of one core, by instruction set and LLVM's model of the core."""
    for board in (BOARDS["rpi5"], MATRICES):
        tile = prefill(board)
        text = assemblies(board, [tile], folder)[tile]
        for model, wide in SERVERS.items():
            found = cost(text, tile, replace(board, model=model, wide=wide))
            print(f"{board.isa} on {model}: {1 / found.whole:.1f} products a cycle")


def _board(board: Board, folder: Path, source: Path | None, clang: str) -> None:
    codes, tile, cached = decoding(), prefill(board), attending()
    texts = assemblies(board, [*codes, tile, *cached], folder)
    found = {kernel: cost(text, kernel, board) for kernel, text in texts.items()}
    theirs: list[Cost] = []
    tiles = [found[tile]]
    if source is not None:
        text = llama.assembly(source, board, clang)
        (folder / f"llama-{board.name}.s").write_text(text)
        has_dots = "dotprod" in board.clang
        theirs = [cost(text, kernel, board) for kernel in (*(llama.REPACKED if has_dots else ()), *llama.DOTS)]
        tiles += [cost(text, kernel, board) for kernel in llama.TILES if has_dots]
    print(f"\n{board.core} ({board.name}), {board.cores} cores of {board.clock / 1e9} GHz, memory "
          f"{board.bandwidth / 1e9} GB/s\n\n| one token | cycles a weight: loop | row | instructions | GB/s | "
          f"of memory's time |\n|---|---|---|---|---|---|")  # fmt: skip
    for one in [found[kernel] for kernel in codes]:
        print(_line(one, board, ""))
    for one in theirs:
        print(_line(one, board, "llama.cpp "))
    print("\n| many tokens | cycles a product: loop | block | GOPS |\n|---|---|---|---|")
    for one in tiles:
        ours = "" if one.kernel is tile else "llama.cpp "
        print(f"| {ours}{one.kernel.title} | {one.loop:.4f} | {one.whole:.4f} | {one.operations(board) / 1e9:.0f} |")
    print("\n| attention | cycles a cached number | GB/s |\n|---|---|---|")
    for one in [found[kernel] for kernel in cached]:
        print(f"| {one.kernel.title} | {one.whole * one.kernel.shared:.3f} | {one.bytes_a_second(board) / 1e9:.1f} |")


def _line(one: Cost, board: Board, whose: str) -> str:
    return (f"| {whose}{one.kernel.title} | {one.loop:.3f} | {one.whole:.3f} | {one.instructions:.3f} | "
            f"{one.bytes_a_second(board) / 1e9:.1f} | {one.of_memory(board):.2f} |")  # fmt: skip


if __name__ == "__main__":
    main()
