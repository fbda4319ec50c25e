"""Calibration data: text to token sequences, reproducibly. Knows nothing of models beyond their tokenizer file."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from export.contract.errors import InputError
from export.files import access as files
from export.files.access import MANIFEST
from runtime_py.chat.template import open_template
from runtime_py.text import generator as generate
from runtime_py.text.special_tokens import splits_special_tokens
from runtime_py.text.tokenizing import encode
from toolchain.calibrate.built_in_text import FIXED_DATE, built_in_text
from toolchain.settings.calibration import BUILT_IN
from toolchain.source.tokenizer import source_tokenizer

_DATASET_CHARACTERS = 4_000_000


@dataclass(frozen=True)
class CalibrationData:
    """Token sequences and where they came from."""

    tokens: np.ndarray  # int64 [sequences, length]
    source: str
    digest: str  # SHA-256 of the token ids


def load_tokenizer(folder: Path) -> Tokenizer:
    """The folder's tokenizer: as written for what this project made, else as transformers builds it from the files.

    Raises InputError when it is missing or not readable.
    """
    if (folder / MANIFEST).is_file():
        return generate.load_tokenizer(folder)
    tokenizer = source_tokenizer(folder)
    tokenizer.encode_special_tokens = splits_special_tokens(folder)
    return tokenizer


def read_text(path: Path) -> str:
    """A UTF-8 text file, or .gz of one. Raises InputError when it cannot be read, or is longer than MAX_TEXT bytes."""
    if not path.exists():
        raise InputError(f"{path}: no such text file")
    if path.suffix != ".gz":
        return files.read_text(path)
    try:
        with files.open_file(path, files.MAX_TEXT) as packed, gzip.open(packed) as file:
            data = file.read(files.MAX_TEXT + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    except MemoryError:
        raise InputError(f"{path}: needs more memory than there is") from None
    if len(data) > files.MAX_TEXT:
        raise InputError(f"{path}: unpacks to more than {files.MAX_TEXT >> 20} MB")
    return files.as_text(path, data)


def slice_text(text: str, part: str | None) -> str:
    """A fraction `part` such as "0:0.5" (first half) of a text, by characters. None means all of it."""
    if part is None:
        return text
    try:
        start, stop = (float(piece) for piece in part.split(":"))
    except ValueError:
        start, stop = -1.0, -1.0
    if not 0.0 <= start < stop <= 1.0:
        raise InputError(f"text part {part!r}: expected START:STOP with 0 <= START < STOP <= 1, such as 0:0.5")
    return text[int(len(text) * start) : int(len(text) * stop)]


def calibration_text(source: str, folder: Path) -> str:
    """The text behind a calibration source: the built-in text, a local file, or a hub dataset's `text` column.

    folder: of the model, whose chat template renders the conversations of the built-in text.
    """
    if source == BUILT_IN:
        return built_in_text(open_template(folder, prologue=FIXED_DATE))
    path = files.expanded(source)
    if path.exists() or path.suffix in (".txt", ".gz", ".md"):
        return read_text(path)
    return _dataset_text(source)


def _dataset_text(name: str) -> str:
    try:
        from datasets import load_dataset  # type: ignore[import-not-found]
    except ImportError:
        raise InputError(
            f"{name}: no such file. To calibrate on a Hugging Face dataset of this name, pip install datasets"
        ) from None
    dataset_name, _, config = name.partition(":")
    try:
        rows = load_dataset(dataset_name, config or None, split="train", streaming=True)
        pieces, size = [], 0
        for row in rows:
            pieces.append(row["text"])
            size += len(pieces[-1])
            if size > _DATASET_CHARACTERS:
                break
    except Exception as error:  # the datasets library raises many kinds
        raise InputError(f"{name}: this dataset cannot be read as text ({error})") from None
    return "\n\n".join(pieces)


def _frame(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Special tokens that the tokenizer puts before and after a text."""
    encoded = encode(tokenizer, "a")
    inner = [i for i, special in enumerate(encoded.special_tokens_mask) if not special]
    return encoded.ids[: inner[0]], encoded.ids[inner[-1] + 1 :]


def sample_sequences(
    text: str, tokenizer: Tokenizer, count: int | None, length: int, seed: int, vocab_size: int, source: str,
    framed: bool = False,
) -> CalibrationData:  # fmt: skip
    """`count` sequences of `length` tokens at seeded random places of the tokenized text (fewer if it is short).

    None takes all of the text. framed: each sequence stands between the special tokens that the tokenizer puts around
    a text ([CLS] and [SEP]), which the length includes.

    Raises InputError when the text is shorter than one sequence or a token lies outside the vocabulary.
    """
    ids = np.asarray(encode(tokenizer, text, special=False).ids, dtype=np.int64)
    if ids.size < length:
        raise InputError(
            f"{source}: calibration text has {ids.size} tokens, one sequence needs {length}; "
            "give a longer text or a smaller --sequence-length"
        )
    if ids.size and int(ids.max()) >= vocab_size:
        raise InputError(
            f"tokenizer.json: gives token {int(ids.max())}, but config.json says vocab_size {vocab_size}; "
            "tokenizer and model do not belong together"
        )
    first, last = _frame(tokenizer) if framed else ([], [])
    length -= len(first) + len(last)
    slots = ids.size // length
    chosen = np.sort(np.random.default_rng(seed).permutation(slots)[:count])
    tokens = np.stack([[*first, *ids[s * length : (s + 1) * length], *last] for s in chosen]).astype(np.int64)
    return CalibrationData(tokens, source, hashlib.sha256(tokens.tobytes()).hexdigest())
