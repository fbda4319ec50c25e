"""Changes numbers of a verified table: what the verifier lets pass is run with a guard page behind every array.

python -m tests.runtime_py.engine.table_mutations FOLDER COUNT, with ATHENA_CHECK=1. COUNT: changes sampled, 0 for
all. A change that gets by the verifier and touches a guard page ends the process by a signal; the last line says which.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from export.artefacts.reader import read_graph
from export.contract.errors import InputError, NotFiniteError
from runtime_py.engine import program
from runtime_py.engine.encoder import EncoderEngine
from runtime_py.engine.engine import Engine
from runtime_py.engine.records.errors import Unplannable
from runtime_py.engine.records.group_matrix import GroupMatrix
from runtime_py.engine.records.stored_matrix import GROUPS_WIDTH, NUMBERS, StoredMatrix, runs_directly
from runtime_py.engine.steps.table import ARGUMENTS, FIELDS, NAMES, OPERATION
from runtime_py.engine.verify.verifier import verify
from runtime_py.reference.expansion import expand_products

CHANGES = (1, -1, 4, -4, 16, 64, -64, 4096, -4096, 1 << 20, -(1 << 20), 1 << 40)


def opened(folder: Path) -> tuple[tuple[Any, ...], Callable[[], None]]:
    """What the verifier was given, and a function that makes all kinds of calls."""
    given: list[tuple[Any, ...]] = []

    def keep(*arguments: Any) -> dict[str, int]:
        given.append(arguments)
        return verify(*arguments)

    program.verify = keep
    graph = expand_products(read_graph(folder), keep=runs_directly)
    if any(info.name == "logits" for info in graph.outputs):
        engine = Engine(graph, 1)

        def run() -> None:
            for parts in ((1, 256, 1), (5, 3), (40,)):
                state = engine.new_state()
                for i, size in enumerate(parts):
                    with suppress(NotFiniteError):
                        engine.forward(state, [1] * size, last_only=i % 2 == 0)

        return given[0], run
    encoder = EncoderEngine(graph, "last_hidden_state", 40, 1)
    return given[0], lambda: [encoder.states([1] * n) for n in (1, 5, 40)] and None


def changes(plan: Any) -> Iterator[tuple[str, np.ndarray, tuple[int, ...], int]]:
    """(what, array, place, new number) of every change of the table and of the matrix records."""
    fixed = {cell for cells in plan.externals.values() for cell in cells}
    for row, step in enumerate(plan.steps.tolist()):
        names = ("operation", "barrier", "last", *FIELDS[step[OPERATION]])
        for column in range(ARGUMENTS + len(FIELDS[step[OPERATION]])):
            if (row, column) not in fixed:
                for change in CHANGES:
                    what = f"step {row} {NAMES[step[OPERATION]]} {names[column]} {change:+d}"
                    yield what, plan.steps, (row, column), step[column] + change
                yield f"step {row} {names[column]} = 0", plan.steps, (row, column), 0
    for number, record in enumerate(plan.constants):
        if record.dtype == np.int64 and record.shape == (NUMBERS,):
            own = GroupMatrix if StoredMatrix.of(record.tolist()).width >= GROUPS_WIDTH else StoredMatrix
            for place in range(len(own.names())):
                for change in CHANGES:
                    yield f"record {number} field {place} {change:+d}", record, (place,), int(record[place]) + change


def main() -> None:
    """Command line."""
    arguments, run = opened(Path(sys.argv[1]))
    everything, count = list(changes(arguments[0])), int(sys.argv[2])
    chosen = random.Random(count).sample(everything, min(count, len(everything))) if count else everything
    caught = harmless = 0
    run()
    for what, array, place, value in chosen:
        kept = array[place]
        array[place] = value
        try:
            if value == kept:
                continue
            try:
                verify(*arguments)
            except Unplannable:
                caught += 1
                continue
            os.write(1, f"{what}\n".encode())
            with suppress(InputError):
                run()
            harmless += 1
        finally:
            array[place] = kept
    print(f"{caught} caught, {harmless} harmless")


if __name__ == "__main__":
    main()
