"""Decoding a mixture of experts whose mapped weights are larger than the memory they may take. Linux.

    python -m tests.benchmarks.larger_than_memory [--shape olmoe-1b-7b:4] [--bits 4] [--shares 100 75 50 25]
        [--tokens 32] [--by experts|pages|both] [--folder MODEL]

A row for each share of the file that may stay in memory (tests/benchmarks/limited_memory.py holds it there): tokens a
second, what was read from the disk for a token, how often a token waited for a page (major faults), most resident bytes
of the file, and tokens a second as they would be if nothing but those bytes took time besides: 1 / (time with
everything in memory + bytes / what the disk gives for pieces of 1 MB). "whole experts": the file is said not to fit, so
the engine asks for experts as wholes; "pages": as if it did fit, the system reads around what is touched. Texts: tokens
drawn evenly, which reach all experts alike, the worst case; and by Zipf's law, as words are. Without --folder, random
codes at the shape: routers send tokens anywhere.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np

from runtime_py.engine.engine import Engine
from runtime_py.load import open_model
from tests.benchmarks.limited_memory import PageLimit, bytes_read, disk_rate
from tests.benchmarks.running import athena

_WARM = 32  # tokens before the clock starts, so that what is resident is what the limit leaves


@dataclass(frozen=True)
class Run:
    """One text under one limit."""

    rate: float  # tokens a second
    read: float  # bytes from the disk for a token
    waits: float  # for a page, of a token
    most: int  # bytes of the file in memory at once


def texts(vocabulary: int, tokens: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    order, weights = rng.permutation(vocabulary), 1 / np.arange(1, vocabulary + 1)
    by_law = order[rng.choice(vocabulary, tokens, p=weights / weights.sum())]
    return {"even": rng.integers(0, vocabulary, tokens), "Zipf": by_law}


def decode(engine: Engine, ids: np.ndarray, limit: PageLimit) -> Run:
    state = engine.new_state()
    for token in ids[:_WARM]:
        engine.forward(state, [token], last_only=True)
    limit.most, before, faults, start = 0, bytes_read(), _faults(), time.perf_counter()
    for token in ids[_WARM:]:
        engine.forward(state, [token], last_only=True)
    seconds, tokens = time.perf_counter() - start, len(ids) - _WARM
    read, waits = (bytes_read() - before) / tokens, (_faults() - faults) / tokens
    return Run(tokens / seconds, read, waits, limit.most)


def _faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


def measure(folder: Path, fits: bool, shares: list[int], tokens: int, threads: int | None) -> None:
    """Rows of a table. fits: open the folder as where memory holds it."""
    with mock.patch("runtime_py.load.free_memory", lambda: 1 << 60 if fits else 0):
        engine, why = open_model(folder, threads=threads, mapped=True)
    if not isinstance(engine, Engine):
        raise SystemExit(f"{folder}: runs in the interpreter ({why})")
    file = folder / "model.onnx.data"
    size, disk = file.stat().st_size, disk_rate(file)
    print(f"\n{size / 1e6:.0f} MB, {engine.bytes_per_token / 1e6:.0f} MB of them for a token; the disk gives ", end="")
    print(f"{disk / 1e6:.0f} MB/s; {engine.threads} threads, {engine.instruction_set}\n")
    heads = "read by", "text", "may stay", "tokens/s", "read, MB a token", "waits a token", "resident, MB"
    print(f"| {' | '.join(heads)} | tokens/s by the disk |\n" + "|---" * 8 + "|", flush=True)
    for name, ids in texts(engine.vocab_size, _WARM + tokens).items():
        whole = 0.0
        for share in shares:
            limit = PageLimit(file, size * share // 100)
            limit.drop()
            if share >= 100:
                _read(file)
            limit.start()
            try:
                found = decode(engine, ids, limit)
            finally:
                limit.close()
            whole = whole or 1 / found.rate
            model = 1 / (whole + found.read / disk)
            by, read, most = "pages" if fits else "whole experts", found.read / 1e6, found.most / 1e6
            cells = f"{found.rate:.2f} | {read:.1f} | {found.waits:.0f} | {most:.0f} | {model:.2f}"
            print(f"| {by} | {name} | {share} % | {cells} |", flush=True)


def _read(file: Path) -> None:
    with file.open("rb", buffering=0) as opened:
        while opened.read(1 << 24):
            pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="olmoe-1b-7b:4")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--shares", type=int, nargs="+", default=[100, 75, 50, 25])
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--by", choices=["experts", "pages", "both"], default="both")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch) / "model"
        if args.folder is None:
            athena(f"athena-export export --random {args.shape} --bits {args.bits} -o {folder}")
        for fits in {"pages": (True,), "experts": (False,), "both": (False, True)}[args.by]:
            measure(folder, fits, args.shares, args.tokens, args.threads)


if __name__ == "__main__":
    main()
