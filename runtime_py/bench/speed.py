"""Speed of a model folder on this machine: prefill, decode at several depths, and how much of the memory it uses.

Contenders of one table are interleaved round by round, because machines are shared and drift.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from export.contract.errors import InputError
from runtime_py.bench.bandwidth import Bandwidth
from runtime_py.engine.engine import Engine
from runtime_py.engine.state import EngineState
from runtime_py.load import open_model
from runtime_py.system.memory import peak_rss
from runtime_py.text.generator import context_length


@dataclass(frozen=True)
class BenchSettings:
    """What is measured."""

    prompts: tuple[int, ...]  # tokens of each prefill
    depths: tuple[int, ...]  # tokens in the cache before decode starts
    tokens: int  # decoded per round
    rounds: int
    threads: int | None = None  # None: every processor
    mapped: bool | None = None  # weights in the mapped file, or read into memory; None: load.py chooses
    processors: tuple[int, ...] = ()  # that keep one thread each; empty: left to the system
    cache_bits: int = 16  # of cached keys and values
    bits: int | None = None  # at which nested codes are read

    def __post_init__(self) -> None:
        """Raises InputError on a number that makes no sense."""
        if not self.prompts or not self.depths or min(*self.prompts, *self.depths, self.tokens, self.rounds) < 1:
            raise InputError("bench needs prompt lengths, depths, tokens and rounds of 1 or more")


def bench(folder: Path, settings: BenchSettings) -> dict[str, Any]:
    """Measure one folder. Lengths beyond the model's context are left out.

    Raises InputError when the folder cannot be run by the compiled engine or no length fits its context.
    """
    model, why = open_model(
        folder,
        threads=settings.threads,
        mapped=settings.mapped,
        processors=settings.processors,
        cache_bits=settings.cache_bits,
        bits=settings.bits,
    )
    if not isinstance(model, Engine):
        raise InputError(f"{folder}: runs in the interpreter ({why}), which has no speed worth measuring")
    room = context_length(folder)
    prompts = [n for n in settings.prompts if n <= room]
    depths = [n for n in settings.depths if n + settings.tokens <= room]
    if not prompts or not depths:
        raise InputError(f"{folder}: its context of {room} tokens is shorter than every length asked for")
    rng = np.random.default_rng(0)
    ids = rng.integers(0, model.vocab_size, max(*prompts, *depths))
    model.forward(model.new_state(), ids[:1])  # compiles
    states = {depth: model.new_state() for depth in depths}
    for depth, state in states.items():
        model.forward(state, ids[:depth], last_only=True)
        model.forward(state, ids[:1], last_only=True)  # the cache grows now, not in the first round
    for n in prompts:
        model.forward(model.new_state(), ids[:n], last_only=True)
    memory = peak_rss()  # before the yardstick takes its own
    yardstick = Bandwidth(model.threads)
    yardstick.measure()
    prefill: dict[int, list[float]] = {n: [] for n in prompts}
    decode: dict[int, list[float]] = {n: [] for n in depths}
    bandwidth: list[float] = []
    for _ in range(settings.rounds):
        for n in prompts:
            prefill[n].append(_rate(model, model.new_state(), ids[:n], 1))
        for n, state in states.items():
            decode[n].append(_decode_rate(model, state, n, settings.tokens))
            bandwidth.append(yardstick.measure())
    rate, read = statistics.median(decode[depths[0]]), statistics.median(bandwidth)
    return {
        "folder": str(folder),
        "settings": asdict(settings),
        "instruction_set": model.instruction_set,
        "threads": model.threads,
        "prefill": {
            "tokens_per_s": statistics.median(prefill[prompts[0]]),
            "by_length": {str(n): _summary(values) for n, values in prefill.items()},
        },
        "decode": {
            "tokens_per_s": rate,
            "by_depth": {str(n): _summary(values) for n, values in decode.items()},
            "bytes_per_token": model.bytes_per_token,
            "bytes_per_s": rate * model.bytes_per_token,
            "bandwidth_fraction": rate * model.bytes_per_token / read,
        },
        "read_bandwidth": _summary(bandwidth),
        "cache_bytes_per_token": model.cache_bytes_per_token,
        "file_bytes": sum(f.stat().st_size for f in folder.glob("model.onnx*")),
        "peak_rss_bytes": memory,
    }


def _rate(model: Engine, state: EngineState, ids: np.ndarray, repeat: int) -> float:
    start = time.perf_counter()
    for _ in range(repeat):
        model.forward(state, ids, last_only=True)
    return repeat * ids.size / (time.perf_counter() - start)


def _decode_rate(model: Engine, state: EngineState, depth: int, tokens: int) -> float:
    if model.rewind(state, depth) != depth:  # forget what the last round decoded
        raise RuntimeError(f"no state is kept behind {depth} tokens")
    return _rate(model, state, np.array([1]), tokens)


def _summary(values: list[float]) -> dict[str, float]:
    return {
        "median": statistics.median(values),
        "mean": statistics.fmean(values),
        "deviation": statistics.stdev(values) if len(values) > 1 else 0.0,
    }
