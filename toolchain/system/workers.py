"""Independent layers solved side by side: in processes of this machine, or on a Dask cluster, both through joblib.

The layers of one block do not depend on one another once their Hessians are known, so the result is the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from export.contract.errors import InputError
from toolchain.system.threads import in_fixed_rounding


@dataclass(frozen=True)
class Workers:
    """How many layers are solved at once, and where. Not part of the fingerprint: it does not change the result."""

    count: int = 1
    scheduler: str | None = None  # address of a Dask scheduler; None: processes of this machine

    def __post_init__(self) -> None:
        """Raises InputError on a count that makes no sense."""
        if not 1 <= self.count <= 4096:
            raise InputError(f"--workers must be 1 to 4096, not {self.count}")


def solve_all(function: Callable[..., Any], jobs: Iterable[tuple[Any, ...]], workers: Workers) -> Iterator[Any]:
    """function(*job) for every job, in order. Raises InputError when Dask or its scheduler is missing."""
    if workers.count == 1 and workers.scheduler is None:
        for job in jobs:
            yield function(*job)
        return
    import joblib

    with _backend(workers):
        parallel = joblib.Parallel(n_jobs=workers.count, return_as="generator")
        yield from parallel(joblib.delayed(in_fixed_rounding)(function, *job) for job in jobs)


@contextlib.contextmanager
def _backend(workers: Workers) -> Iterator[None]:
    import joblib

    if workers.scheduler is None:
        with joblib.parallel_config(backend="loky"):
            yield
        return
    try:
        from dask.distributed import Client
    except ImportError:
        raise InputError("--scheduler needs Dask: pip install 'athena-export[cluster]'") from None
    try:
        client = Client(workers.scheduler, timeout="10s")
    except (OSError, TimeoutError) as error:
        raise InputError(f"--scheduler {workers.scheduler}: cannot be reached ({error})") from None
    with client, joblib.parallel_config(backend="dask"):
        yield
