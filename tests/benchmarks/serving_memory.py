"""Memory of `serve` under a long load: `python -m tests.benchmarks.serving_memory FOLDER --clients 64 --minutes 10`.

The requests are those of tests/runtime_py/serving/test_serve.py: 24 of them over and over, a third streamed, every
answer compared with the same request alone. The server's resident memory is read once a second; a row is the median of
the second half of a minute. A warm-up of 20 seconds comes first.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from pathlib import Path

from tests.runtime_py.serving.helpers import ServerProcess
from tests.runtime_py.serving.test_serve import load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--minutes", type=int, default=10)
    given = parser.parse_args()
    with ServerProcess(given.folder, "--model-name", "stories", "--queue", "40") as server:
        load(server, given.clients, 20)  # every buffer has grown
        seen: list[int] = []
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(1):
                seen.append(server.resident())

        watching = threading.Thread(target=watch)
        watching.start()
        start = time.monotonic()
        try:
            statuses, wrong, _ = load(server, given.clients, 60 * given.minutes)
        finally:
            ended.set()
            watching.join()
        taken = time.monotonic() - start
    print(f"{given.clients} clients, {taken:.0f} s: answers by status {statuses}, different from alone: {wrong}\n")
    print("| minute | resident, MB |\n|---|---|")
    a_minute = len(seen) / given.minutes
    for minute in range(1, given.minutes + 1):
        part = seen[round((minute - 0.5) * a_minute) : round(minute * a_minute)]
        print(f"| {minute} | {statistics.median(part) / 1e6:.1f} |")


if __name__ == "__main__":
    main()
