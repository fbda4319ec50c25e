"""What a step of several texts costs beside that of one: `python -m tests.benchmarks.together OUT`.

One interleaved run: every round times a step of 1, 2, 4, 8 and 16 texts, each some tokens long already; medians of the
rounds. "all" is tokens a second of all texts together.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from runtime_py.load import open_model

COUNTS = (1, 2, 4, 8, 16)


def measure(folder: str, length: int, rounds: int) -> dict[int, list[float]]:
    """Seconds of single steps, by how many texts they are for."""
    model, why = open_model(folder)
    if why:
        raise SystemExit(f"{folder} runs in the interpreter: {why}")
    ids = np.random.default_rng(0).integers(3, model.vocab_size, length)
    found: dict[int, list[float]] = {count: [] for count in COUNTS}
    texts = [model.new_state() for _ in range(max(COUNTS))]
    for text in texts:
        model.forward(text, ids, last_only=True)
    for number in range(rounds + 1):  # the first compiles, and grows the caches
        for count in COUNTS:
            start = time.perf_counter()
            model.step(texts[:count], [5] * count)
            if number:
                found[count].append(time.perf_counter() - start)
            for text in texts[:count]:
                model.rewind(text, length)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--length", type=int, default=64, help="tokens of every text before the step")
    parser.add_argument("--rounds", type=int, default=40)
    given = parser.parse_args()
    seconds = {
        count: statistics.median(times) for count, times in measure(given.folder, given.length, given.rounds).items()
    }
    print("| texts | ms a step | of one text's | all, tokens/s |\n|---|---|---|---|")
    for count, one in seconds.items():
        print(f"| {count} | {1000 * one:.2f} | {one / seconds[1]:.2f} | {count / one:.1f} |")


if __name__ == "__main__":
    main()
