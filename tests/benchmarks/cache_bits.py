"""Speed over caches of 16, 8 and 4 bits at some depths: `python -m tests.benchmarks.cache_bits OUT`.

One interleaved run: every round decodes some tokens, and takes in a chunk of 256, at each depth with each kind of
cache; medians. "cache GB/s" is what the cache holds at that depth over the time that decoding takes beyond that at 64
tokens; "of a plain read" is that beside a loop that only reads memory, in the same rounds. Caches are filled with
copies of 256 tokens, since speed does not depend on what they hold. With `--threads 1` processor time is taken, which
other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np

from runtime_py.bench.bandwidth import _BYTES, Bandwidth
from runtime_py.engine.engine import Engine
from runtime_py.engine.state import CHUNK, EngineState
from runtime_py.load import open_model

_SHALLOW = 64


def filled_state(model: Engine, depth: int) -> EngineState:
    """A state of `depth` tokens and room for some more: copies of its first 256."""
    state = model.new_state()
    model.forward(state, np.random.default_rng(0).integers(3, model.vocab_size, CHUNK), last_only=True)
    model.reserve(state, depth + 2 * CHUNK, [])
    for cache in (*state.keys, *state.values):
        blocks = cache.shape[1]
        for start in range(CHUNK // 16, blocks, CHUNK // 16):
            cache[:, start : start + CHUNK // 16] = cache[:, : min(CHUNK // 16, blocks - start)]
    return state


def at(state: EngineState, depth: int) -> EngineState:
    """The state with so many tokens, which it must have had room for."""
    state.length = depth
    return state


def clock(threads: int | None) -> Callable[[], float]:
    """Seconds: of this process where it has one thread, else those that pass."""
    return time.process_time if threads == 1 else time.perf_counter


class Contender:
    """One folder with one kind of cache."""

    def __init__(self, folder: Path, bits: int, deepest: int, threads: int | None) -> None:
        model, why = open_model(folder, threads=threads, cache_bits=bits)
        if not isinstance(model, Engine):
            raise SystemExit(f"{folder} runs in the interpreter: {why}")
        if model.recurrent_bytes:
            raise SystemExit(f"{folder} has recurrent states, whose places cannot be set")
        self.model, self.state = model, filled_state(model, deepest)
        self._now = clock(threads)
        self.decode: dict[int, list[float]] = defaultdict(list)
        self.prefill: dict[int, list[float]] = defaultdict(list)

    def round(self, depth: int, tokens: int, chunk: bool) -> None:
        start = self._now()
        at(self.state, depth)
        for _ in range(tokens):
            self.model.forward(self.state, [5], last_only=True)
        self.decode[depth].append((self._now() - start) / tokens)
        if chunk:
            ids = np.full(CHUNK, 5)
            at(self.state, depth)
            start = self._now()
            self.model.forward(self.state, ids, last_only=True)
            self.prefill[depth].append(self._now() - start)


def measure(
    folders: list[Path], bits: list[int], depths: list[int], rounds: int, tokens: int, chunk: bool, threads: int | None
) -> None:
    """Print a table."""
    found = {(folder, b): Contender(folder, b, max(depths), threads) for folder in folders for b in bits}
    yardstick = Bandwidth(next(iter(found.values())).model.threads)
    read: list[float] = []
    now = clock(threads)
    for number in range(rounds + 1):
        for depth in (_SHALLOW, *depths):
            for one in found.values():
                one.round(depth, tokens, chunk)
            start = now()
            yardstick.measure()
            read.append(_BYTES / (now() - start))
        if number == 0:  # it compiles
            for one in found.values():
                one.decode.clear()
                one.prefill.clear()
    plain = statistics.median(read)
    print(f"{plain / 1e9:.1f} GB/s are read by a plain loop\n")
    print("| model | bits | depth | cache, MB | decode, tokens/s | cache GB/s | of a plain read | prefill, tokens/s |")
    print("|---|---|---|---|---|---|---|---|")
    for (folder, b), one in found.items():
        shallow = statistics.median(one.decode[_SHALLOW])
        for depth in (_SHALLOW, *depths):
            seconds = statistics.median(one.decode[depth])
            size = one.model.cache_bytes_per_token * depth
            rate = size / (seconds - shallow) if seconds > shallow else 0.0
            prefill = CHUNK / statistics.median(one.prefill[depth]) if chunk else 0.0
            shown = f"{rate / 1e9:.1f} | {rate / plain:.2f}" if rate else "|"
            print(
                f"| {folder.name} | {b} | {depth:,} | {size / 1e6:.1f} | {1 / seconds:.1f} | {shown} | {prefill:.0f} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--bits", type=int, nargs="+", default=[16, 8, 4])
    parser.add_argument("--depths", type=int, nargs="+", default=[2048, 7936])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=8, help="decoded in a round")
    parser.add_argument("--no-prefill", action="store_true")
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    measure(given.folders, given.bits, given.depths, given.rounds, given.tokens, not given.no_prefill, given.threads)


if __name__ == "__main__":
    main()
