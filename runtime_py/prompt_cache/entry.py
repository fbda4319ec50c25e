"""One file of the cache: a part of a prompt's keys and values, or the recurrent states behind one.

    magic (8 bytes) | key (32) | count of items (4, little endian) | items (1 each) | payload | digest (16)

The key is a digest of the model's fingerprint, of whose text it is and of all tokens up to the end of the part, so a
file with the right key holds what was asked for. The digest (BLAKE2b of all that stands before) tells damage. A file is
read only as far as its length is the one that the model asks for.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from export.contract.errors import InputError
from export.files.access import read_bytes, replacing

MAGIC = b"ATHPFX1\n"
_KEY, _DIGEST, _COUNT = 32, 16, 4
_MOST_ITEMS = 4096


class Damaged(Exception):
    """The file is not what its name says."""


def first_key(fingerprint: bytes, tenant: str) -> bytes:
    """What the keys of a model and a tenant begin with."""
    return hashlib.blake2b(fingerprint + tenant.encode(), digest_size=_KEY).digest()


def next_key(before: bytes, tokens: tuple[int, ...]) -> bytes:
    """The key of a part from that of the part before it and its own tokens."""
    words = b"".join(token.to_bytes(8, "little", signed=True) for token in tokens)
    return hashlib.blake2b(before + words, digest_size=_KEY).digest()


def packed(key: bytes, items: list[int], payload: bytes) -> bytes:
    """A file's content."""
    content = b"".join((MAGIC, key, len(items).to_bytes(_COUNT, "little"), bytes(items), payload))
    return content + hashlib.blake2b(content, digest_size=_DIGEST).digest()


def unpacked(content: bytes, key: bytes) -> tuple[list[int], bytes]:
    """(items, payload) of a file's content. Raises Damaged."""
    start = len(MAGIC) + _KEY + _COUNT
    body, digest = content[:-_DIGEST], content[-_DIGEST:]
    if len(content) < start + _DIGEST or body[: len(MAGIC)] != MAGIC or body[len(MAGIC) : start - _COUNT] != key:
        raise Damaged("another file")
    if hashlib.blake2b(body, digest_size=_DIGEST).digest() != digest:
        raise Damaged("its content has changed")
    count = int.from_bytes(body[start - _COUNT : start], "little")
    if count > min(_MOST_ITEMS, len(body) - start):
        raise Damaged("its length")
    return list(body[start : start + count]), body[start + count :]


def read(path: Path, key: bytes, most: int) -> tuple[list[int], bytes]:
    """A file of at most `most` bytes of payload. Raises Damaged, FileNotFoundError when there is none."""
    if not path.exists():
        raise FileNotFoundError(path)
    try:
        content = read_bytes(path, most + len(MAGIC) + _KEY + _COUNT + _MOST_ITEMS + _DIGEST)
    except InputError as error:
        raise Damaged(str(error)) from None
    return unpacked(content, key)


def write(path: Path, key: bytes, items: list[int], payload: bytes) -> None:
    """Write a file in one step; only the user can read it. Raises OSError, InputError."""
    with replacing(path, durable=False) as temporary:
        os.chmod(temporary, 0o600)
        temporary.write_bytes(packed(key, items, payload))
