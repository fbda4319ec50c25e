"""Threads whose number does not change a result: fixed pieces of work, each done by one thread, joined in order.

Libraries that split one sum over their threads (BLAS, torch) round differently with another number of them. So inside
`fixed_rounding` they have one thread each, and whoever has independent work hands it to `ordered`.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from itertools import islice
from typing import Any, TypeVar

from runtime_py.system.thread_pool import available_threads

Item = TypeVar("Item")
Result = TypeVar("Result")
_worker = threading.local()


def thread_count() -> int:
    """OMP_NUM_THREADS where it is set (joblib's and Dask's workers have their share there), else all there are."""
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return max(1, int(asked)) if asked.isdigit() else available_threads()


@contextlib.contextmanager
def fixed_rounding() -> Iterator[None]:
    """One thread for every product of numpy and torch, so that its rounding depends on nothing but its operands."""
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


def ordered(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """function(item) for every item, in order, in threads; at most one result more than there are threads waits.

    Inside one of these threads the items are done one by one. An exception ends the iteration.
    """
    count = thread_count()
    if count == 1 or getattr(_worker, "inside", False):
        yield from map(function, items)
        return
    rest, pool = iter(items), _pool(count)
    waiting: list[Future[Result]] = [pool.submit(function, item) for item in islice(rest, count + 1)]
    try:
        while waiting:
            result = waiting.pop(0).result()
            waiting += [pool.submit(function, item) for item in islice(rest, 1)]
            yield result
    finally:
        for future in waiting:
            future.cancel()


@cache
def _pool(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, "athena", _enter)


def _enter() -> None:
    import torch

    _worker.inside = True
    torch.set_num_threads(1)  # a new thread starts with OpenMP's default


def pieces(total: int, size: int) -> list[slice]:
    """Slices of `size` that cover range(total)."""
    return [slice(first, min(first + size, total)) for first in range(0, total, size)]


def in_fixed_rounding(function: Callable[..., Any], *arguments: Any) -> Any:
    """function(*arguments) under fixed_rounding: what a worker process calls."""
    with fixed_rounding():
        return function(*arguments)
