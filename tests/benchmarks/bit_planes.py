"""Do bit planes win on processors? AND and population counts against the int8 product of the same codes.

    python -m tests.benchmarks.bit_planes [--rounds 15]

One token, one thread, weights in a cache (arithmetic) and in memory (bytes), in turns; medians of the rounds' ratios.
Both read p bits a weight. Packing of activations is left out on both sides. For cortex-a76 cycles of a block by
llvm-mca's model. Functions: tests/benchmarks/planes/emit.py; equal to the integer product by
tests/benchmarks/planes/test_products.py.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from tests.benchmarks.planes import compiled
from tests.benchmarks.planes.emit import COLUMNS, ByBytes, Planes

WIDTHS = [(p, q) for p in (1, 2, 3, 4) for q in (1, 2, 3, 4, 8)]
SHAPES = {"in a cache": (512, 2048), "in memory": (65_536, 4096)}
_SECONDS = 0.004  # of one measurement


def prepared(kind: type, isa: str, p: int, q: int, rows: int, columns: int) -> Callable[[], None]:
    rng = np.random.default_rng(0)
    weights = rng.integers(0, 2**63, rows * columns * p // 64)  # random bits are random codes either way
    activations = rng.integers(0, 1 << min(q, 7), (1, columns))
    x = compiled.plane_bytes(activations, q) if kind is Planes else activations.astype(np.int8)
    sums, function = np.zeros(rows, np.int64), compiled.compiled(kind, isa, p, q)

    def run(kept: object = (weights, x)) -> None:
        function(weights.ctypes.data, x.ctypes.data, columns // COLUMNS, rows, sums.ctypes.data)

    run()
    return run


def seconds(run: Callable[[], None], times: int) -> float:
    start = time.thread_time()  # processor time: other work on the machine does not count
    for _ in range(times):
        run()
    return (time.thread_time() - start) / times


def ratio(isa: str, p: int, q: int, shape: tuple[int, int], rounds: int) -> float:
    """How many times as fast planes are."""
    runs = [prepared(kind, isa, p, q, *shape) for kind in (ByBytes, Planes)]
    times = max(1, int(_SECONDS / max(seconds(runs[0], 1), 1e-7)))
    found = []
    for _ in range(rounds):
        by_bytes, by_planes = (seconds(run, times) for run in runs)
        found.append(by_bytes / by_planes)
    return float(np.median(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    sets = compiled.available()
    heads = [f"{isa}, {where}" for isa in sets for where in SHAPES] + ["cortex-a76 (llvm-mca)"]
    print("| times as fast as int8 | " + " | ".join(heads) + " |\n" + "|---" * (len(heads) + 1) + "|")
    for p, q in WIDTHS:
        cells = [f"{ratio(isa, p, q, shape, arguments.rounds):.2f}" for isa in sets for shape in SHAPES.values()]
        arm = [compiled.cycles(kind, "neondot", p, q) for kind in (ByBytes, Planes)]
        cells.append("-" if arm[0] is None or arm[1] is None else f"{arm[0] / arm[1]:.2f}")
        print(f"| W{p}A{q} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
