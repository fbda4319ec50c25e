"""A pool of threads that all run the same compiled function, each with its own number; one of them is the caller."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence

Work = Callable[[int, int], None]  # (thread number, threads)


def available_threads() -> int:
    """Processors this process may use; ATHENA_THREADS, when set to a positive number, wins."""
    wanted = os.environ.get("ATHENA_THREADS", "")
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _pin(processor: int) -> None:
    """Keep the calling thread on one processor, where the system can do that."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {processor})


class ThreadPool:
    """size - 1 waiting threads. They are daemons: an exiting interpreter does not wait for them."""

    def __init__(self, size: int, processors: Sequence[int] = ()) -> None:
        """processors: where each thread is kept, the caller's first; empty leaves that to the system."""
        self.size, self._processors = size, tuple(processors)
        self._work: Work = lambda thread, threads: None
        self._threads = 1
        self._start = [threading.Semaphore(0) for _ in range(size - 1)]
        for number, signal in enumerate(self._start, start=1):
            threading.Thread(target=self._serve, args=(number, signal), daemon=True, name=f"athena-{number}").start()

    def _serve(self, number: int, signal: threading.Semaphore) -> None:
        if self._processors:
            _pin(self._processors[number])
        while True:
            signal.acquire()
            self._work(number, self._threads)

    def run(self, work: Work, threads: int) -> None:
        """work(i, threads) on threads 0..threads - 1 at the same time; they must wait for one another at their end."""
        self._work, self._threads = work, threads
        if self._processors:
            _pin(self._processors[0])
        for signal in self._start[: threads - 1]:
            signal.release()
        work(0, threads)
