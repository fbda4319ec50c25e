"""QRazor's runtime beside the floating-point one: cache in 4 bits and in float16, interleaved on one machine.

    python -m tests.benchmarks.razor_speed [--shape tinyllama-1.1b] [--rounds 5]

Three folders of random weights (speed does not depend on them): razored weights and activations with the 4-bit cache,
the same with a float16 cache, and Athena codebooks with int8 activations and a float16 cache. Every round measures each
in a process of its own, in turn. Prints medians, the peak memory of a process that only decodes behind 2,048 tokens,
and the bytes that its cache holds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np

from runtime_py.engine.engine import Engine
from runtime_py.load import open_model
from tests.benchmarks.speed import capture
from toolchain.pipeline.published_shapes import SHAPES

KINDS = {
    "razored, 4-bit cache": ["--method", "qrazor", "--kv", "4"],
    "razored, float16 cache": ["--method", "qrazor"],
    "Athena 4 bits, float16 cache": ["--bits", "4"],
}
DEPTH, PROMPT = 2048, 512


def bench(folder: Path, prompts: str, depths: str, threads: int) -> dict:
    command = [sys.executable, "-m", "toolchain", "bench", folder, "--prompt-lengths", prompts, "--depths", depths]
    return json.loads(capture(*command, "--rounds", 1, "--threads", threads, "--no-mmap", "--no-save", "--json"))


def cache_bytes(folder: Path) -> int:
    """Bytes of keys and values that the engine holds behind DEPTH tokens."""
    engine, _ = open_model(folder)
    assert isinstance(engine, Engine)
    state = engine.new_state()
    engine.forward(state, np.full(DEPTH, 5), last_only=True)
    return state.bytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="tinyllama-1.1b")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folders = {name: Path(scratch) / str(i) for i, name in enumerate(KINDS)}
        for name, folder in folders.items():
            capture(sys.executable, "-m", "toolchain", "export", "--random", args.shape, "-o", folder, *KINDS[name])
        sizes = {name: cache_bytes(folder) / 1e6 for name, folder in folders.items()}
        found: dict[str, dict[str, list[float]]] = {name: {} for name in KINDS}
        for _ in range(args.rounds):
            for name, folder in folders.items():
                data = bench(folder, str(PROMPT), f"64,{DEPTH}", args.threads)
                row = {"prefill": data["prefill"]["by_length"][str(PROMPT)]["median"]}
                row |= {depth: one["median"] for depth, one in data["decode"]["by_depth"].items()}
                row["peak"] = bench(folder, "8", str(DEPTH), args.threads)["peak_rss_bytes"] / 1e6
                for key, value in row.items():
                    found[name].setdefault(key, []).append(value)
    print(f"| | prefill {PROMPT} | decode at 64 | decode at {DEPTH} | cache of {DEPTH} tokens, MB | peak, MB |")
    print("|---|---|---|---|---|---|")
    for name, rows in found.items():
        prefill, near, far, peak = (statistics.median(rows[key]) for key in ("prefill", "64", str(DEPTH), "peak"))
        print(f"| {name} | {prefill:.0f} | {near:.1f} | {far:.1f} | {sizes[name]:.1f} | {peak:.0f} |")


if __name__ == "__main__":
    main()
