"""The one boundary around everything that parses, tokenizes or renders what came from outside.

Libraries fail over hostile files in as many ways as they have slips: exceptions of any type, panics of Rust code (which
are no Exception), memory or recursion that runs out. Within foreign() all of them are one InputError.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from export.contract.errors import InputError, NotFiniteError

_LONGEST_REASON = 300  # characters
_OURS = (InputError, NotFiniteError, ImportError, BrokenPipeError)
_ORDERS = (KeyboardInterrupt, SystemExit, GeneratorExit)


@contextmanager
def foreign(where: str | Path, problem: str = "cannot be read") -> Iterator[None]:
    """Whatever foreign input sets off in here is raised as InputError "where: problem (reason)".

    What passes: our own errors, packages that are not installed, orders to stop, a full disk.
    """
    try:
        yield
    except (*_OURS, *_ORDERS):
        raise
    except MemoryError as error:
        raise InputError(f"{where}: needs more memory than there is") from error
    except RecursionError as error:
        raise InputError(f"{where}: {problem} (it nests too deeply)") from error
    except BaseException as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        raise InputError(f"{where}: {problem} ({reason(error)})") from error


def reason(error: BaseException) -> str:
    """An exception in a few words, of one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())[:_LONGEST_REASON]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
