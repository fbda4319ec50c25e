"""Composed graphs by the thousand: engine against interpreter, with guard pages, in processes that may die.

python -m tests.fuzz.graphs --runs 200000 [--seed 0] [--first 0] [--log FILE] FOLDER...

compose.py makes the graphs, half of them from those of the folders, and compare.py runs them. A number is one graph: a
process that dies or hangs says at which it was, that one is run again alone, and the run goes on behind it. --log keeps
the tally of each process as a line of JSON; what these sources have done already is not run again, so a run can be cut
off and go on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export.artefacts.graph import Graph
from export.artefacts.reader import read_graph
from runtime_py.system.sources import digest
from tests.fuzz.compare import agree
from tests.fuzz.compose import graphs

A_PROCESS = 4000  # graphs
_SECONDS = 300  # for one of them, and for a machine that is compiled meanwhile
_EVERY = 8  # one graph of so many is written to a file and read by the product's reader


@dataclass
class Tally:
    """What became of the graphs, and the findings."""

    graphs: int = 0
    seconds: float = 0.0  # of processor time
    compared: int = 0  # values of the engine, against the interpreter's
    results: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)  # compiled graphs that had them
    findings: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.graphs += other.graphs
        self.seconds += other.seconds
        self.compared += other.compared
        self.results += other.results
        self.reasons += other.reasons
        self.kinds += other.kinds
        self.findings += other.findings

    @staticmethod
    def read(text: str) -> Tally:
        found = json.loads(text)
        counters = {name: Counter(found.pop(name)) for name in ("results", "reasons", "kinds")}
        return Tally(**found, **counters)

    def text(self) -> str:
        """As JSON, in one line."""
        return json.dumps(vars(self))

    def compiled(self) -> int:
        return sum(count for result, count in self.results.items() if result.startswith("compiled"))

    def table(self) -> str:
        """For people."""
        parts = [("graphs", self.results), ("graphs, not compiled because of", self.reasons), ("with", self.kinds)]
        lines = [f"{count:7d} {title}: {what}" for title, counter in parts for what, count in counter.most_common(70)]
        return "\n".join([*lines, *self.findings, self.says()])

    def says(self) -> str:
        """In one line."""
        rate = f"{self.graphs / max(self.seconds, 1e-9):.0f} a second"
        counts = f"{self.graphs} graphs, {self.compiled()} compiled, {self.compared} values compared"
        return f"{counts}, {len(self.findings)} findings, {rate}"


def run_here(seed: int, first: int, runs: int, real: list[Graph], at: int) -> Tally:
    """In this process; the number of the graph at work stands in the file of descriptor `at`."""
    tally, start = Tally(), time.process_time()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        for number, graph, random_ in graphs(seed, first, runs, real):
            os.pwrite(at, f"{number:12d}".encode(), 0)  # what a crash leaves behind
            try:
                outcome = agree(graph, random_, Path(folder) if number % _EVERY == 0 else None)
            except Exception as error:
                tally.results["a finding"] += 1
                tally.findings.append(f"graph {number} of seed {seed}: {type(error).__name__}: {error}")
                continue
            tally.results[outcome.result] += 1
            tally.reasons.update([outcome.why] if outcome.why else ())
            tally.kinds.update(outcome.kinds)
            tally.compared += outcome.compared
    tally.graphs, tally.seconds = runs, time.process_time() - start
    return tally


def in_a_process(runs: int, seed: int, folders: list[Path], first: int = 0) -> Tally:
    """A checked run in processes of their own: a graph that ends one is a finding, and the next process goes on."""
    whole, last = Tally(), first + runs
    while first < last:
        tally, died = _child(last - first, seed, folders, first)
        whole.add(tally)
        first += tally.graphs
        if died:
            _, again = _child(1, seed, folders, first)
            whole.findings.append(f"graph {first} of seed {seed}: {died}; alone: {again or 'nothing'}")
            whole.results["a finding"] += 1
            whole.graphs += 1
            first += 1
    return whole


def _child(runs: int, seed: int, folders: list[Path], first: int) -> tuple[Tally, str]:
    """(tally of the graphs before the one at which the process died, how it died or "")."""
    with (
        tempfile.NamedTemporaryFile() as at,
        tempfile.TemporaryFile("w+") as wrote,
        tempfile.TemporaryFile("w+") as out,
    ):
        command = [sys.executable, "-m", "tests.fuzz.graphs", "--at", at.name, "--seed", str(seed)]
        command += ["--first", str(first), "--runs", str(runs), *map(str, folders)]
        environment = {**os.environ, "ATHENA_CHECK": "1"}
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=wrote)
        reached = first - 1
        while process.poll() is None:
            try:
                process.wait(_SECONDS)
            except subprocess.TimeoutExpired:
                before, reached = reached, int(Path(at.name).read_bytes() or first)
                if before == reached:
                    process.kill()  # it hangs
        out.seek(0)
        if process.returncode == 0:
            return Tally.read(out.read()), ""
        reached = int(Path(at.name).read_bytes() or first)
        wrote.seek(0)
        died = f"status {process.returncode}: {wrote.read()[-2000:]}"
    return _child(reached - first, seed, folders, first)[0] if reached > first else Tally(), died


def state() -> str:
    """Stands for the sources that a tally depends on: those of the product, of the comparison and of the composer."""
    return "-".join(digest(Path(__file__).with_name(name)) for name in ("compare.py", "compose.py"))


def campaign(runs: int, seed: int, folders: list[Path], first: int = 0, log: Path | None = None) -> Tally:
    """All of them, in processes of A_PROCESS; says what there was after each."""
    done: dict[str, Any] = {}
    for line in log.read_text(encoding="utf-8").split("\n") if log is not None and log.exists() else ():
        done |= json.loads(line or "{}")
    whole = Tally()
    for start in range(first, first + runs, A_PROCESS):
        count = min(A_PROCESS, first + runs - start)
        key = f"{state()} {seed} {start} {count}"
        tally = Tally.read(done[key]) if key in done else in_a_process(count, seed, folders, start)
        if log is not None and key not in done:
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps({key: tally.text()}) + "\n")
        whole.add(tally)
        print("\n".join([whole.says(), *tally.findings]), flush=True)
    return whole


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--log", type=Path, help="a file of tallies; what stands in it is not run again")
    parser.add_argument("--at", type=Path, help="run in this process, write the number at work there: for the parent")
    parser.add_argument("folders", nargs="*", type=Path, help="exports whose graphs are changed")
    options = parser.parse_args()
    if options.at is not None:
        at = os.open(options.at, os.O_WRONLY)
        real = [read_graph(folder) for folder in options.folders]
        print(run_here(options.seed, options.first, options.runs, real, at).text())
        return
    whole = campaign(options.runs, options.seed, options.folders, options.first, options.log)
    print(whole.table())
    sys.exit(1 if whole.findings else 0)


if __name__ == "__main__":
    main()
