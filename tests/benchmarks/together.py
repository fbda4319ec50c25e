"""What a step of several texts costs beside that of one: `python -m tests.benchmarks.together OUT`.

One interleaved run: every round times a step of 1, 2, 4, 8 and 16 texts, each some tokens long already; medians of the
rounds. "all" is tokens a second of all texts together. `--without 8`: instead, what a step of 8 texts takes less where
steps of one kind of the table are left out (its results are then of no use), so what that kind costs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence

import numba as nb
import numpy as np

from runtime_py.engine.engine import Engine
from runtime_py.engine.state import EngineState
from runtime_py.engine.steps.table import NAMES, OPERATION
from runtime_py.load import open_model

COUNTS = (1, 2, 4, 8, 16)


@nb.cfunc(nb.int32(*[nb.int64] * 9))
def nothing(call, step, number, first, tokens, counter, thread, threads, scratch):  # pragma: no cover
    """A driver that leaves its step out."""
    return 0


def opened(folder: str, length: int) -> tuple[Engine, list[EngineState]]:
    """The model, and the most texts, of so many tokens."""
    model, why = open_model(folder)
    if why or not isinstance(model, Engine):
        raise SystemExit(f"{folder} runs in the interpreter: {why}")
    ids = np.random.default_rng(0).integers(3, model.vocab_size, length)
    texts = [model.new_state() for _ in range(max(COUNTS))]
    for text in texts:
        model.forward(text, ids, last_only=True)
    return model, texts


def seconds_of(model: Engine, texts: Sequence[EngineState], length: int) -> float:
    """Of one step, which is taken back."""
    start = time.perf_counter()
    model.step(texts, [5] * len(texts))
    taken = time.perf_counter() - start
    for text in texts:
        model.rewind(text, length)
    return taken


def measure(folder: str, length: int, rounds: int) -> dict[int, list[float]]:
    """Seconds of single steps, by how many texts they are for."""
    model, texts = opened(folder, length)
    found: dict[int, list[float]] = {count: [] for count in COUNTS}
    for number in range(rounds + 1):  # the first compiles, and grows the caches
        for count in COUNTS:
            taken = seconds_of(model, texts[:count], length)
            if number:
                found[count].append(taken)
    return found


def by_kind(folder: str, length: int, rounds: int, count: int) -> dict[str, float]:
    """Seconds of a step of so many texts, "all", and what it takes less without steps of each kind."""
    model, texts = opened(folder, length)
    seconds_of(model, texts[:count], length)
    program = model._program
    drivers, kinds = program._compiled("plain" if count == 1 else "apart"), program.table.steps[:, OPERATION]
    caches = [text.items for text in texts]
    original, names = drivers.copy(), sorted({NAMES[kind] for kind in kinds.tolist()} - {"Embed"})
    found: dict[str, list[float]] = {name: [] for name in ("all", *names)}
    for _ in range(rounds):
        for name, taken in found.items():
            drivers[:] = original
            if name != "all":
                drivers[kinds == NAMES.index(name)] = nothing.address
            taken.append(seconds_of(model, texts[:count], length))
    drivers[:] = original
    if any(text.items != before for text, before in zip(texts, caches)):
        raise SystemExit("a step without some of its parts has made numbers beyond float16: no times")
    whole = statistics.median(found["all"])
    return {"all": whole} | {name: whole - statistics.median(found[name]) for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--length", type=int, default=64, help="tokens of every text before the step")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--without", type=int, choices=COUNTS, help="texts of a step whose parts are left out in turn")
    given = parser.parse_args()
    if given.without:
        for name, one in by_kind(given.folder, given.length, given.rounds, given.without).items():
            print(f"{name:16} {1000 * one:6.2f} ms")
        return
    seconds = {
        count: statistics.median(times) for count, times in measure(given.folder, given.length, given.rounds).items()
    }
    print("| texts | ms a step | of one text's | all, tokens/s |\n|---|---|---|---|")
    for count, one in seconds.items():
        print(f"| {count} | {1000 * one:.2f} | {one / seconds[1]:.2f} | {count / one:.1f} |")


if __name__ == "__main__":
    main()
