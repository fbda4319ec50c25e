"""A pool of threads that all run the same compiled function, each with its own number; one of them is the caller."""

from __future__ import annotations

import os
import threading
import weakref
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


class _Shared:
    """What the threads see of their pool: not the pool itself, so that nobody keeps it alive but who uses it."""

    def __init__(self, size: int) -> None:
        self.work: Work | None = None
        self.threads = 1
        self.start = [threading.Semaphore(0) for _ in range(size - 1)]

    def end(self) -> None:
        """Let the waiting threads return."""
        self.work = None
        for signal in self.start:
            signal.release()


def _serve(shared: _Shared, number: int, processor: int | None) -> None:
    if processor is not None:
        _pin(processor)
    while True:
        shared.start[number - 1].acquire()
        if shared.work is None:
            return
        shared.work(number, shared.threads)


class ThreadPool:
    """size - 1 waiting threads, which end with the pool. They are daemons: an exiting interpreter does not wait."""

    def __init__(self, size: int, processors: Sequence[int] = ()) -> None:
        """processors: where each thread is kept, the caller's first; empty leaves that to the system."""
        self.size, self._processors = size, tuple(processors)
        self._shared = _Shared(size)
        for number in range(1, size):
            arguments = (self._shared, number, self._processors[number] if processors else None)
            threading.Thread(target=_serve, args=arguments, daemon=True, name=f"athena-{number}").start()
        weakref.finalize(self, self._shared.end)

    def run(self, work: Work, threads: int) -> None:
        """work(i, threads) on threads 0..threads - 1 at the same time; they must wait for one another at their end."""
        shared = self._shared
        shared.work, shared.threads = work, threads
        if self._processors:
            _pin(self._processors[0])
        for signal in shared.start[: threads - 1]:
            signal.release()
        work(0, threads)
        shared.work = None  # all threads have begun it, because this one ended; it holds the caller's memory
