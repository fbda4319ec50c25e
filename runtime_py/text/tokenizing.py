"""Every call into the tokenizers library over a tokenizer that came with a model: limited, and its panics caught.

A tokenizer.json is a small program: expressions that backtrack, replacements that grow the text, settings on which the
library panics. So texts are encoded in a thread that is waited for so long and not longer, without the interpreter's
lock (encode_batch_fast gives it back, encode does not), and only as far as tokenizer_limits.py says that they fit.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import Encoding, Tokenizer

from export.contract.errors import InputError
from export.files.foreign import foreign
from runtime_py.text.tokenizer_limits import check_tokenizer, growth, longest_prompt

FILE = "tokenizer.json"
_SECONDS, _SECONDS_PER_CHARACTER = 10.0, 2e-5  # a usual tokenizer needs 1e-6 for a character
_MOST_TEXT = 1 << 32  # characters after normalization of a text file, so many bytes times 20
_BYTES_PER_BYTE = 10  # in memory for one of tokenizer.json
T = TypeVar("T")


class TooLong(InputError):
    """A prompt that cannot fit the model's context."""


def open_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer.json. Raises InputError when it is missing, broken, or asks for what no text can be given to."""
    with boundary(path, "not a readable tokenizer"):
        tokenizer = Tokenizer.from_file(str(path))
    return checked(tokenizer, path)


def tokenizer_bytes(folder: Path) -> int:
    """About what the folder's tokenizer takes in memory: assumed from the size of its file."""
    try:
        return _BYTES_PER_BYTE * (folder / FILE).stat().st_size
    except OSError:
        return 0


def parsed_tokenizer(text: str, where: str | Path) -> Tokenizer:
    """open_tokenizer() of the text of such a file."""
    with boundary(where, "not a readable tokenizer"):
        tokenizer = Tokenizer.from_str(text)
    return checked(tokenizer, where)


def checked(tokenizer: Tokenizer, where: str | Path) -> Tokenizer:
    """The tokenizer itself, without cutting and padding, which are right for training batches only.

    Raises InputError as open_tokenizer does.
    """
    with boundary(where, "not a usable tokenizer"):
        tokenizer.no_truncation()
        tokenizer.no_padding()
        check_tokenizer(tokenizer, where)
    return tokenizer


def encode(
    tokenizer: Tokenizer, text: str | tuple[str, str], special: bool = True, where: str | Path = FILE
) -> Encoding:
    """The encoded text or pair of texts: ids without offsets. special: with the tokens put around texts.

    Raises InputError when the tokenizer fails over the text, takes too long, or would make too much of it.
    """
    length = len(text) if isinstance(text, str) else sum(map(len, text))
    size = length * growth(tokenizer)
    if size > _MOST_TEXT:
        raise InputError(f"{where}: the tokenizer may make {size} characters of this text of {length}")
    seconds = _SECONDS + _SECONDS_PER_CHARACTER * size
    with boundary(where, "the tokenizer cannot encode this text"):
        return _within(
            seconds, lambda: tokenizer.encode_batch_fast([text], add_special_tokens=special)[0], "the tokenizer"
        )


def most_bytes(tokenizer: Tokenizer, context: int | None = None) -> int:
    """Bytes (UTF-8) of the longest prompt worth tokenizing for a context of so many tokens (None: for any)."""
    with boundary(FILE, "not a usable tokenizer"):
        return longest_prompt(tokenizer, context)


def encode_prompt(tokenizer: Tokenizer, text: str, most: int | None = None, special: bool = True) -> list[int]:
    """Token ids of a prompt of at most so many bytes (most_bytes()); a longer one costs nothing.

    Raises TooLong for that, InputError as encode() does, and for half of a surrogate pair, which is no character.
    """
    most = most_bytes(tokenizer) if most is None else most
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise InputError(f"the prompt holds half of a surrogate pair (character {error.start})") from None
    if size > most:
        raise TooLong(f"the prompt has {size} bytes, more than the {most} that can fit")
    return encode(tokenizer, text, special).ids


@contextmanager
def boundary(where: str | Path = FILE, problem: str = "the tokenizer cannot decode these tokens") -> Iterator[None]:
    """foreign() around calls into the library, without the lines that Rust writes when it panics.

    They go to file descriptor 2 before anyone can catch the panic. Only the main thread shuts it for the time of the
    call: beside another thread, somebody else may be writing there.
    """
    with foreign(where, problem), _without_panic_lines():
        yield


@contextmanager
def _without_panic_lines() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    try:
        kept = os.dup(2)
    except OSError:  # there is no standard error
        yield
        return
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _within(seconds: float, call: Callable[[], T], who: str) -> T:
    """The call's result or exception. Raises InputError after so many seconds; nothing can stop the thread then."""
    found: list[Any] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            found.append(call())
        except BaseException as error:  # raised again below, in the caller's thread
            failed.append(error)

    thread = threading.Thread(target=work, name="athena-tokenizer", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise InputError(f"{who} takes longer than {seconds:.0f} s for this text")
    if failed:
        raise failed[0]
    result: T = found[0]
    return result
