"""Decode and prefill speed of all folders that hold something to run, in one interleaved run on one machine.

Our folders run by `athena-export bench`, GGUF files by llama-bench; the float32 row is llama.cpp's float32 file. The
other peers have no runtime for processors that stores what they store.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.real.quality import Yard
from tests.benchmarks.real.rows import SPEEDS_FILE
from tests.benchmarks.speed import Contender, folder_contender, llama

SPEEDS = {"decode": "decode at 64", "prefill": "prefill 512"}  # tokens already there; tokens of the prompt
REFERENCE = "llama.cpp Q4_0"


def contenders(rows: list[dict[str, Any]], yard: Yard, tools: Path | None, threads: int) -> list[Contender]:
    """What can be run of the rows that FOLDER holds."""
    found = []
    for row in rows:
        folder = row.get("made", {}).get("folder", "")
        if folder and (yard.folder / folder / "model.onnx").exists():
            found.append(folder_contender(row["name"], yard.folder / folder, threads, "--mmap"))
        stored = yard.folder / f"{folder}.gguf" if folder else yard.folder / "peers" / "source.gguf"
        if tools and row["kind"] in ("llama.cpp", "source") and stored.exists():
            one = llama(tools / "llama-bench", stored, row["name"], threads)
            found.append(Contender(row["name"], one.megabytes, one.measure))
    return found


def kept_speeds(yard: Yard) -> dict[str, Any]:
    """{name: {decode, prefill}} in tokens a second, as last measured."""
    path = yard.measured / SPEEDS_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def measure(chosen: Sequence[Contender], yard: Yard, rounds: int) -> None:
    """Medians of all contenders, kept beside the rows, unless each of them is there already."""
    if not chosen or {one.name for one in chosen} <= kept_speeds(yard).keys():
        return
    found: dict[str, list[dict[str, float]]] = {one.name: [] for one in chosen}
    for number in range(rounds):
        for one in chosen:
            found[one.name].append(one.measure())
            print(number, one.name, found[one.name][-1], file=sys.stderr, flush=True)
    medians = {
        name: {label: statistics.median(run[key] for run in runs) for label, key in SPEEDS.items()}
        for name, runs in found.items()
    }
    (yard.measured / SPEEDS_FILE).write_text(json.dumps(medians, indent=1), encoding="utf-8")
