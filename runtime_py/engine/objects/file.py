"""An object in a file: a line that says what it is, a digest of everything, and the machine code.

The digest finds what a full disk or a broken copy has left. It does not make a file trustworthy: an object is a
program, and is only read from where nobody but the user can write (store.py).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import llvmlite

from runtime_py.engine.objects.wanted import Wanted
from runtime_py.machine.processor import Processor
from runtime_py.system.sources import ROOT

SUFFIX = ".athena-object"
MOST_BYTES = 16 << 20
_MAGIC = b"athena-object 1\n"
_DIGEST = hashlib.sha256
# Rooms, and a file, that compiled code comes from. Whole rooms, because finding out who imports whom takes longer than
# a start may.
_ROOMS = ("engine/kernels", "engine/layout", "engine/loop", "engine/records", "engine/steps", "machine", "simd")
_FILE = "engine/objects/compiling.py"


class Damaged(Exception):
    """A file is no whole object, or not the one that is wanted; says why."""


@dataclass(frozen=True)
class Origin:
    """What must be the same for an object to be used."""

    maker: str
    step: str
    width: tuple[str, int] | None
    isa: str
    triple: str
    cpu: str
    features: str
    sources: str  # digest of the sources of all kernels
    compiler: str  # versions of Numba and llvmlite

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @property
    def key(self) -> str:
        """For a file's name: objects of several versions can lie in one folder."""
        return _DIGEST(self.to_json().encode()).hexdigest()[:12]


def origin(wanted: Wanted, processor: Processor) -> Origin:
    """What this version would make."""
    return Origin(
        wanted.maker, wanted.step, wanted.width, wanted.isa, processor.triple, processor.cpu, processor.features,
        sources(), compiler(),
    )  # fmt: skip


@cache
def sources() -> str:
    """16 hexadecimal digits over every source file that kernels come from."""
    found = _DIGEST()
    base = ROOT / "runtime_py"
    for path in [base / _FILE, *(path for room in _ROOMS for path in sorted((base / room).rglob("*.py")))]:
        found.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()[:16]


@cache
def compiler() -> str:
    """Which compiler is installed, found without importing it."""
    return f"numba {_numba_version()}, llvmlite {llvmlite.__version__}"


def _numba_version() -> str:
    spec = PathFinder.find_spec("numba")
    if spec is None or spec.origin is None:
        return "none"
    found = sorted(Path(spec.origin).parents[1].glob("numba-*.dist-info"))
    return found[-1].name.split("-")[1].removesuffix(".dist") if found else "unknown"


def packed(made: Origin, code: bytes) -> bytes:
    """The content of a file."""
    head = made.to_json().encode() + b"\n"
    return _MAGIC + head + _DIGEST(head + code).digest() + code


def unpacked(content: bytes) -> tuple[str, bytes]:
    """The Origin, as JSON, and the machine code. Raises Damaged."""
    if not content.startswith(_MAGIC):
        raise Damaged("is no object of this version's form")
    head, line_end, rest = content[len(_MAGIC) :].partition(b"\n")
    size = _DIGEST().digest_size
    if not line_end or _DIGEST(head + b"\n" + rest[size:]).digest() != rest[:size]:
        raise Damaged("is cut off or damaged")
    return head.decode("utf-8", "replace"), rest[size:]


def made_for(content: bytes) -> dict[str, Any]:
    """The Origin as it stands in a file. Raises Damaged."""
    try:
        found = json.loads(unpacked(content)[0])
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Damaged("does not say what it is for")
    return found


def difference(asked: Origin, found: str) -> str:
    """What a file was made for, where that is not what is asked for; "" where it is."""
    return "" if asked.to_json() == found else "something else than its name says"
