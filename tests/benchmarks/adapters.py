"""What adapters cost: python -m tests.benchmarks.adapters OUT [--rank 16] [--bits 16] [--rounds 12] [--threads 1]

OUT is a model folder, such as `athena-export export --random qwen2.5-0.5b -o OUT` makes; it is not changed. A random
LoRA of every linear layer in the blocks is added to a copy of it (links to its files). Rounds are interleaved, because
machines are shared: in each, every contender decodes the same tokens, then reads the same prompt. Ratios are medians
over rounds. With one thread, processor time is what counts, which others on the machine disturb least.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from runtime_py.engine.engine import Engine
from runtime_py.load import open_model
from tests.peft_folders import random_pairs, write_peft
from toolchain.adapters.adding import add_adapter, sites_of

_DEPTH, _PROMPT = 64, 128
_clock: Callable[[], float] = time.perf_counter


def seconds(model: Engine, adapter: str, tokens: int) -> tuple[float, float]:
    """Of a decoded token behind _DEPTH others, and of a prompt of _PROMPT."""
    ids = np.random.default_rng(0).integers(0, model.vocab_size, _PROMPT)
    state = model.new_state()
    model.adapt(state, adapter)
    model.forward(state, ids[:_DEPTH], last_only=True)
    start = _clock()
    for token in ids[:tokens]:
        model.forward(state, [int(token)], last_only=True)
    decode = (_clock() - start) / tokens
    fresh = model.new_state()
    model.adapt(fresh, adapter)
    start = _clock()
    model.forward(fresh, ids, last_only=True)
    return decode, _clock() - start


def together(model: Engine, adapters: list[str], tokens: int) -> float:
    """Of a step of four texts."""
    states = [model.new_state() for _ in adapters]
    for state, adapter in zip(states, adapters):
        model.adapt(state, adapter)
        model.forward(state, [1, 2, 3], last_only=True)
    start = _clock()
    for token in range(tokens):
        model.step(states, [token + 1] * len(states))
    return (_clock() - start) / tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--bits", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--threads", type=int)
    asked = parser.parse_args()
    if asked.threads == 1:
        global _clock
        _clock = time.process_time
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "model"
        copy.mkdir()
        for path in asked.folder.iterdir():
            if path.is_file():
                os.link(path, copy / path.name)
        sites = [site for site in sites_of(copy) if site.module != "lm_head"]
        lora = write_peft(Path(scratch) / "lora", random_pairs(sites, asked.rank, size=0.05), r=asked.rank)
        size = add_adapter(copy, "x", lora, asked.bits).nbytes()
        plain, _ = open_model(asked.folder, threads=asked.threads)
        adapted, why = open_model(copy, threads=asked.threads, adapters=None)
        assert isinstance(plain, Engine) and isinstance(adapted, Engine), why
        contenders = {"no adapters": (plain, ""), "loaded, not used": (adapted, ""), "used": (adapted, "x")}
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
        steps: dict[str, list[float]] = {name: [] for name in contenders}
        for number in range(asked.rounds + 1):
            for name, (model, adapter) in contenders.items():
                one = seconds(model, adapter, asked.tokens)
                step = together(model, ["", adapter, adapter, adapter], asked.tokens)
                if number:  # the first round compiles
                    found[name].append(one)
                    steps[name].append(step)
    print(
        f"rank {asked.rank}, {asked.bits} bits: {size / 1e6:.1f} MB beside {plain.bytes_per_token / 1e6:.0f} MB a token"
    )
    for name in contenders:
        rates = [
            statistics.median(base[i] / one[i] for base, one in zip(found["no adapters"], found[name])) for i in (0, 1)
        ]
        step = statistics.median(base / one for base, one in zip(steps["no adapters"], steps[name]))
        decode = 1 / statistics.median(one[0] for one in found[name])
        print(
            f"{name:18} decode {decode:6.1f} tokens/s ({rates[0]:.3f}), prefill ({rates[1]:.3f}), "
            f"steps of four texts ({step:.3f})"
        )


if __name__ == "__main__":
    main()
