"""What a model folder's caches are good for: the same files, computed by the same version of this program.

Weights can be many gigabytes, and reading them all would take as long as the prompt that is to be saved. So of large
files only size, time of the last change and samples of the content count. A cache stays valid where a folder is
renamed; for a copy with new times it begins anew.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from export.files.access import open_file

_WHOLE = 4 << 20  # bytes up to which a file is read to its end: the graph, mostly
_SAMPLES, _SAMPLE_BYTES = 64, 4096
_VERSION = "1"  # of what the engine computes: raised where a change of the kernels changes bits


def fingerprint(folder: Path) -> bytes:
    """32 bytes of a model folder: all its files, as external data may have any name. Raises InputError."""
    digest = hashlib.blake2b(_VERSION.encode(), digest_size=32)
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        with open_file(path, None, folder) as file:
            found = os.fstat(file.fileno())
            digest.update(repr((path.name, found.st_size)).encode())
            if found.st_size <= _WHOLE:
                digest.update(file.read(_WHOLE))
                continue
            digest.update(repr(found.st_mtime_ns).encode())
            for i in range(_SAMPLES):
                file.seek(i * (found.st_size - _SAMPLE_BYTES) // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.digest()
