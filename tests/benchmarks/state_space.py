"""The engine's state space on one thread: prompts and single tokens, and the products of the chunked form beside them.

OPENBLAS_NUM_THREADS=1 python -m tests.benchmarks.state_space

A layer of granite-4.0-h-tiny. Interleaved; thread time, the least of all runs. The chunked form (arXiv 2405.21060,
section 6) is numpy's products alone, without the decays that it needs besides.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from export.contract.operators.state_space import LARGEST, StateSpaceLayout
from runtime_py.engine.layout.recurrent import COLUMNS
from runtime_py.engine.layout.recurrent import SPACE_SCRATCH as SCRATCH
from runtime_py.engine.loop.state_space import run_state_space
from runtime_py.engine.steps.state_space import StateSpace

TOKENS, CHUNK, RUNS = 256, 64, 25
LAYOUT = StateSpaceLayout(48, 1, 128, 64, 0.0, LARGEST)


def ours(rng: np.random.Generator) -> Callable[[int], None]:
    """A function that passes so many tokens through the step."""
    values, states = LAYOUT.heads * LAYOUT.head_dim, LAYOUT.groups * LAYOUT.state_size
    rows = rng.standard_normal((TOKENS, values + 2 * states), np.float32)
    steps = rng.standard_normal((TOKENS, LAYOUT.heads), np.float32)
    numbers = [
        -np.exp(rng.standard_normal(LAYOUT.heads, np.float32)),
        *rng.standard_normal((2, LAYOUT.heads), np.float32),
    ]
    blocks = -(-LAYOUT.head_dim // COLUMNS)
    past = rng.standard_normal((LAYOUT.heads, blocks, LAYOUT.state_size, COLUMNS), np.float32)
    after, out = np.empty_like(past), np.empty((TOKENS, values), np.float32)
    scratch, counter = np.zeros(SCRATCH, np.uint8), np.zeros(1, np.int64)
    kept = (rows, steps, numbers, past, after, out, scratch, counter)
    at = rows.ctypes.data
    rate, bias, skip = (own.ctypes.data for own in numbers)
    step = StateSpace.Values(
        out=out.ctypes.data, value=at, written=at + 4 * values, read=at + 4 * (values + states), stride=rows.shape[1],
        step=steps.ctypes.data, step_stride=LAYOUT.heads, rate=rate, bias=bias, skip=skip, heads=LAYOUT.heads,
        groups=LAYOUT.groups, state_size=LAYOUT.state_size, head_dim=LAYOUT.head_dim, least=np.float32(LAYOUT.least),
        most=np.float32(LAYOUT.most), past=past.ctypes.data, present=after.ctypes.data,
    )  # fmt: skip

    def run(tokens: int) -> None:
        kept[-1][:] = 0
        run_state_space(step, tokens, counter.ctypes.data, scratch.ctypes.data)

    return run


def chunked(rng: np.random.Generator) -> Callable[[], None]:
    heads, size, dim = LAYOUT.state
    written, read = rng.standard_normal((2, TOKENS // CHUNK, CHUNK, size), np.float32)
    value = rng.standard_normal((TOKENS // CHUNK, heads, CHUNK, dim), np.float32)
    decays, state = (
        rng.standard_normal((heads, CHUNK, CHUNK), np.float32),
        rng.standard_normal(LAYOUT.state, np.float32),
    )

    def run() -> None:
        for own, c, x in zip(written, read, value):
            _ = (decays * (c @ own.T)) @ x + c @ state, own.T @ x

    return run


def main() -> None:
    rng = np.random.default_rng(0)
    step, products = ours(rng), chunked(rng)
    work = {f"{TOKENS} tokens": lambda: step(TOKENS), "one token": lambda: step(1), "chunked products": products}
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(RUNS + 1):  # the first compiles
        for name, run in work.items():
            start = time.thread_time()
            run()
            times[name].append(time.thread_time() - start)
    for name, found in times.items():
        print(f"{name}: {1e3 * min(found[1:]):.2f} ms")


if __name__ == "__main__":
    main()
