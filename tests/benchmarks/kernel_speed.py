"""Products on one thread, by kind and width of the codes: `python -m tests.benchmarks.kernel_speed`.

Matrices that lie in a cache and such that do not, in turns; the best of several rounds. ATHENA_ISA picks the
instruction set. Activations are of Student's t distribution with 4 degrees of freedom, so that some blocks have high
digits. `--columns` sets how long rows are. `--tokens 2 4 8 16` adds products with tokens of several texts at once: how
long they take beside one token, in the same rounds, and thousand million products of a weight and a token a second.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from export.contract.formats.codebook import CodebookLayout
from export.contract.formats.halves import HALF, joined
from export.contract.formats.trellis import TrellisLayout
from export.contract.packing import pack
from runtime_py.engine.kernels.apart.places import place
from runtime_py.engine.kernels.apart.rows import SCRATCH_BYTES, matvec_apart_rows
from runtime_py.engine.kernels.matvec import matvec_rows
from runtime_py.engine.kernels.quantize import quantize_token
from runtime_py.engine.layout.products import HIGH_TOKEN, scratch_bytes, width_tag
from runtime_py.engine.records.stored_matrix import matrix_record, matrix_width
from runtime_py.machine.isa import ISAS, WEIGHT_OFFSET, pick
from runtime_py.system.guard_pages import aligned_bytes

SIZES = (20_480 * 2048, 102_400 * 2048)  # weights of a matrix: 10 to 20 MB, and 51 to 102 MB
KINDS = ("scalar", "trellis", "sums")


class Run(NamedTuple):
    """To be called before, and in, the time that is measured."""

    prepare: Callable[[], None]
    compute: Callable[[], None]


def products(kind: str, bits: int, rows: int, columns: int, counts: Sequence[int]) -> list[Run]:
    """Products of a random matrix: with one token, then with so many of several texts."""
    rng = np.random.default_rng(0)
    layout = CodebookLayout(bits, columns, rows) if kind == "scalar" else TrellisLayout(bits, columns, rows, 8, 128)
    codes = pack(rng.integers(0, 1 << bits, (rows, columns), dtype=np.uint8), bits)
    book = rng.integers(-127, 128, layout.codebook_shape).astype(np.int8)
    if kind == "sums":
        book = joined(rng.integers(-63, 64, (len(book), 2 * HALF)).astype(np.int8), bits)
    scale = rng.random(layout.scale_shape).astype(np.float32)
    record, kept = matrix_record(layout, codes, book, scale, halves=kind == "sums")
    isa, blocks = pick(), -(-columns // 256)
    tag, width = ISAS[isa], width_tag(matrix_width(record))
    most = max((1, *counts))
    sizes = (256, 64, 4, HIGH_TOKEN)
    buffers = [aligned_bytes(most * blocks * size) for size in sizes]
    out, scratch = np.zeros((most, rows), np.float32), aligned_bytes(scratch_bytes(columns) + SCRATCH_BYTES)
    x = np.ascontiguousarray(rng.standard_t(4, (most, columns)), np.float32)
    parts = [buffer.ctypes.data for buffer in buffers]
    ends = out.ctypes.data, 0, False, scratch.ctypes.data

    def quantize(tokens: int) -> None:
        for t, b in itertools.product(range(tokens), range(blocks)):
            own = [at + size * (place(t, b, tokens) - b) for at, size in zip(parts, sizes)]
            quantize_token(tag, WEIGHT_OFFSET[isa], x[t].ctypes.data, columns, b, b + 1, *own)

    def alone(kept: object = (kept, buffers, out, scratch, record)) -> None:
        matvec_rows(tag, width, record.ctypes.data, *parts, 0, rows, *ends)

    def together(tokens: int) -> None:
        matvec_apart_rows(tag, width, record.ctypes.data, *parts, tokens, 0, rows, *ends)

    more = [Run(partial(quantize, tokens), partial(together, tokens)) for tokens in counts]
    return [Run(partial(quantize, 1), alone), *more]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--bits", type=int, nargs="*", default=[2, 3, 4])
    parser.add_argument("--tokens", type=int, nargs="*", default=[], help="of several texts at once, 1 to 16")
    parser.add_argument(
        "--columns", type=int, default=2048, help="of the matrices, whose rows are as many as fill them"
    )
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    shapes = [(size // args.columns // 4 * 4, args.columns) for size in SIZES]
    print(f"{pick()}, one thread, 10^9 products a second; in brackets the time beside one token's\n")
    print("| codes | bits | tokens | in a cache | in memory |\n|---|---|---|---|---|")
    for kind in args.kinds:
        for bits in args.bits:
            runs = [products(kind, bits, *shape, args.tokens) for shape in shapes]
            best = [[float("inf")] * len(own) for own in runs]
            for number in range(args.rounds + 1):  # the first compiles
                for own, seconds in zip(runs, best):
                    for i, run in enumerate(own):
                        run.prepare()
                        start = time.perf_counter()
                        run.compute()
                        if number:
                            seconds[i] = min(seconds[i], time.perf_counter() - start)
            for i, tokens in enumerate((1, *args.tokens)):
                rates = [tokens * rows * columns / own[i] / 1e9 for (rows, columns), own in zip(shapes, best)]
                cells = [f"{rate:.1f} ({own[i] / own[0]:.2f})" for rate, own in zip(rates, best)]
                print(f"| {kind} | {bits} | {tokens} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
