"""Products with one token on one thread, by kind and width of the codes: `python -m tests.benchmarks.kernel_speed`.

Matrices that lie in a cache and such that do not, in turns; the best of several rounds. ATHENA_ISA picks the
instruction set. Activations are of Student's t distribution with 4 degrees of freedom, so that some blocks have high
digits.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from export.contract.formats.codebook import CodebookLayout
from export.contract.formats.halves import HALF, joined
from export.contract.formats.trellis import TrellisLayout
from export.contract.packing import pack
from runtime_py.engine.kernels.matvec import matvec_rows
from runtime_py.engine.kernels.quantize import quantize_token
from runtime_py.engine.layout.products import HIGH_TOKEN, padded, scratch_bytes, width_tag
from runtime_py.engine.records.stored_matrix import matrix_record, matrix_width
from runtime_py.machine.isa import ISAS, WEIGHT_OFFSET, pick
from runtime_py.system.guard_pages import aligned_bytes

SHAPES = ((20_480, 2048), (102_400, 2048))  # rows, columns: 10 to 20 MB, and 51 to 102 MB
KINDS = ("scalar", "trellis", "sums")


def product(kind: str, bits: int, rows: int, columns: int) -> Callable[[], None]:
    """One product of a random matrix, to be called."""
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
    x = rng.standard_t(4, columns).astype(np.float32)
    buffers = [aligned_bytes(size) for size in (padded(columns), 64 * blocks, 64 * blocks, HIGH_TOKEN * blocks)]
    out, scratch = np.zeros(rows, np.float32), aligned_bytes(scratch_bytes(columns))
    parts = [buffer.ctypes.data for buffer in buffers]
    quantize_token(tag, WEIGHT_OFFSET[isa], x.ctypes.data, columns, 0, blocks, *parts)

    def run(kept: object = (kept, buffers, out, scratch, record)) -> None:
        matvec_rows(
            tag, width, record.ctypes.data, *parts, 0, rows, out.ctypes.data, 0, False, scratch.ctypes.data
        )  # fmt: skip

    run()
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--bits", type=int, nargs="*", default=[2, 3, 4])
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    print(
        f"{pick()}, one thread, 10^9 weights a second\n\n| codes | bits | in a cache | in memory |\n|---|---|---|---|"
    )
    for kind in args.kinds:
        for bits in args.bits:
            runs = [product(kind, bits, *shape) for shape in SHAPES]
            best = [float("inf")] * len(runs)
            for _ in range(args.rounds):
                for i, run in enumerate(runs):
                    start = time.perf_counter()
                    run()
                    best[i] = min(best[i], time.perf_counter() - start)
            cells = [f"{rows * columns / seconds / 1e9:.1f}" for (rows, columns), seconds in zip(SHAPES, best)]
            print(f"| {kind} | {bits} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
