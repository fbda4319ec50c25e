"""Decode and prefill speed of trellis codes as stored, expanded to 8 bits, and of scalar codes, interleaved.

athena-export export --random tinyllama-1.1b --bits 3 --format codebook -o SCALAR
athena-export export --random tinyllama-1.1b --bits 3 --format trellis --levels sums -o SUMS
athena-export export --random tinyllama-1.1b --bits 3 --format trellis -o ANY
python -m tests.benchmarks.trellis_speed SCALAR SUMS [ANY]
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

from export.artefacts.reader import read_graph
from runtime_py.engine.engine import Engine
from runtime_py.load import open_model
from runtime_py.reference.expansion import expand_products

_ROUNDS, _TOKENS, _PROMPT = 6, 4, np.arange(3, 131)


def main() -> None:
    scalar, *trellis = map(Path, sys.argv[1:])
    engines = {f"{scalar.name}, scalar": open_model(scalar)[0]}
    engines |= {f"{folder.name}, as stored where that is fast": open_model(folder)[0] for folder in trellis}
    engines[f"{trellis[0].name}, expanded"] = Engine(expand_products(read_graph(trellis[0])))
    assert all(isinstance(engine, Engine) for engine in engines.values())
    states = {name: engine.new_state() for name, engine in engines.items()}
    for name, engine in engines.items():
        engine.forward(states[name], _PROMPT, last_only=True)
        engine.forward(states[name], [7])
    decode: dict[str, list[float]] = {name: [] for name in engines}
    prefill: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(_ROUNDS):
        for name, engine in engines.items():
            start = time.perf_counter()
            for _ in range(_TOKENS):
                engine.forward(states[name], [7])
            middle = time.perf_counter()
            engine.forward(engine.new_state(), _PROMPT, last_only=True)
            decode[name].append(_TOKENS / (middle - start))
            prefill[name].append(len(_PROMPT) / (time.perf_counter() - middle))
    print("| | decode, tokens/s | prefill | MB a token |\n|---|---|---|---|")
    for name, engine in engines.items():
        weights = getattr(engine, "bytes_per_token", 0) / 1e6
        print(f"| {name} | {np.median(decode[name]):.1f} | {np.median(prefill[name]):.0f} | {weights:.0f} |")


if __name__ == "__main__":
    main()
