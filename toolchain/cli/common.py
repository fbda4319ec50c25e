"""What all commands share: the error boundary, JSON output, and plain tables."""

from __future__ import annotations

import errno
import functools
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

from export.contract.errors import InputError, NotFiniteError, printable
from export.files.access import FULL, without_infinity

P = ParamSpec("P")
R = TypeVar("R")
show_tracebacks = False
_QUANTIZE_PACKAGES = frozenset({"torch", "transformers", "safetensors", "huggingface_hub", "onnx_ir"})
INTERRUPTED = 130  # what a shell reports for Ctrl-C
_LIMITS = frozenset(  # of files, processes, memory and devices
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM}
)


def guarded(command: Callable[P, R]) -> Callable[P, R]:
    """Turn exceptions into one line on stderr and the documented exit code."""

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except SystemExit:
            raise
        except KeyboardInterrupt:
            _fail("stopped; what is finished is kept, run the same command again to continue", INTERRUPTED)
        except InputError as error:
            _fail(str(error), 2)
        except NotFiniteError as error:
            _fail(str(error), 1)
        except BrokenPipeError:  # the reader of our output went away, e.g. `| head`
            sys.stderr.close()
            raise SystemExit(0) from None
        except ModuleNotFoundError as error:
            if error.name not in _QUANTIZE_PACKAGES:
                raise
            _fail(f"this needs the package {error.name}: pip install 'athena-export[quantize]'", 2)
        except Exception as error:
            if show_tracebacks:
                raise
            if _is_full(error):
                _fail("the disk is full; free some space and run the same command again to continue", 1)
            if isinstance(error, MemoryError):
                _fail("this needs more memory than there is", 1)
            if isinstance(error, RecursionError):
                _fail("a file or folder that is read nests too deeply", 2)
            if isinstance(error, OSError) and error.filename is not None:
                _fail(f"{error.filename}: {error.strerror}", 2)
            if isinstance(error, OSError) and error.errno in _LIMITS:
                _fail(f"the system refuses: {error.strerror}", 1)
            _fail(f"internal error: {type(error).__name__}: {error} (run with --debug for the traceback)", 1)
        raise AssertionError("unreachable")

    return wrapper


def _is_full(error: Exception) -> bool:
    """Whether the disk ran full, as the system says it, safetensors (Rust), or numpy after a short write."""
    text = str(error)
    known = isinstance(error, OSError) and error.errno in FULL
    return known or "No space left" in text or ("requested and" in text and text.endswith("written"))


def _fail(message: str, code: int) -> None:
    print(f"athena-export: {printable(message)}", file=sys.stderr)
    if show_tracebacks and code != INTERRUPTED:
        import traceback

        traceback.print_exc()
    raise SystemExit(code)


def announce_compilation() -> None:
    """Have one line printed before a run that compiles kernels, which would otherwise look stuck."""
    from runtime_py.system.compilation import at_first_compilation

    at_first_compilation(lambda: print("compiling kernels for this model and machine, once", file=sys.stderr))


def print_json(data: dict[str, Any]) -> None:
    """The one JSON object of a --json run. NaN and infinity become null: JSON has neither."""
    print(json.dumps(without_infinity(data), indent=1, allow_nan=False))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout: the first column left, the others right aligned."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def plain(text: str) -> Text:  # names come from files, and rich would read them as markup
        return Text(printable(text))

    heading = plain(title) if title else None
    table = Table(title=heading, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False, padding=(0, 1, 0, 0))
    for i, name in enumerate(columns):
        table.add_column(plain(name), justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(plain, row))
    Console(highlight=False, emoji=False).print(table)
