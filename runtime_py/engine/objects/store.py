"""Objects on disk: the user's own, and those that came with this package.

An object is code. So it is read from the user's private cache, which nobody else can write to
(export/files/cache_folder.py), and from the installed package itself; never from a model folder. What was compiled
elsewhere gets into the cache when the user asks for it (`take`), and only if it is whole and of this version.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from export.contract.errors import InputError
from export.files.access import replacing
from export.files.cache_folder import NoCache, private_cache
from runtime_py.engine.objects.file import (
    MOST_BYTES,
    SUFFIX,
    Damaged,
    compiler,
    difference,
    made_for,
    origin,
    packed,
    sources,
    unpacked,
)
from runtime_py.engine.objects.wanted import AMX, LOOP, Wanted
from runtime_py.machine.isa import pick
from runtime_py.machine.processor import NAMED, Processor, this_processor

SHIPPED = Path(__file__).with_name("shipped")
_KEPT = 2000  # files of the cache; the oldest go


@cache
def folder() -> Path | None:
    """The cache's folder; None, and once a line on stderr, where nothing can be kept."""
    try:
        return private_cache("objects")
    except NoCache as error:
        print(f"[compiled kernels are not kept: {error}]", file=sys.stderr)
        return None


def suiting() -> list[Processor]:
    """Processors whose objects this machine runs: itself, then those by name that need nothing it lacks."""
    this = this_processor()
    return [this, *(p for p in NAMED.values() if _runs(this, p))]


def _runs(this: Processor, other: Processor) -> bool:
    same = (this.architecture, this.system) == (other.architecture, other.system)
    return same and this.needs >= other.needs


def path_in(place: Path, wanted: Wanted, processor: Processor) -> Path:
    """Where an object of this version is kept in a folder."""
    return place / f"{wanted.name}-{processor.name}-{origin(wanted, processor).key}{SUFFIX}"


def keep(place: Path, wanted: Wanted, processor: Processor, code: bytes) -> Path:
    """Write an object into a folder. Raises OSError."""
    path = path_in(place, wanted, processor)
    with replacing(path, durable=False) as temporary:
        temporary.write_bytes(packed(origin(wanted, processor), code))
    return path


def read(path: Path, wanted: Wanted, processor: Processor) -> bytes:
    """The machine code in a file. Raises Damaged where it is not what is wanted, OSError where it cannot be read."""
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise Damaged("is larger than any object")
    found, code = unpacked(content)
    other = difference(origin(wanted, processor), found)
    if other:
        raise Damaged(f"was compiled for {other}")
    return code


def find(wanted: Wanted) -> bytes | None:
    """The machine code of what is wanted, from the cache or the package; None where there is none that fits."""
    own = folder()
    for place in (SHIPPED,) if own is None else (own, SHIPPED):
        for processor in suiting():
            path = path_in(place, wanted, processor)
            try:
                return read(path, wanted, processor)
            except FileNotFoundError:
                continue
            except (Damaged, OSError) as error:
                _tell(path, error)
    return None


def _tell(path: Path, why: Exception) -> None:
    reason = why.strerror if isinstance(why, OSError) else why
    print(f"[{path.name} {reason}: not used]", file=sys.stderr)


def take(source: Path, wanted: Iterable[Wanted]) -> int:
    """Copy the objects of `source` that are wanted and run here into the cache; how many were wanted and are there.

    Raises InputError where nothing can be kept, where `source` is no folder, or where a file in it is not what its name
    says: another version's, another processor's, damaged.
    """
    own = folder()
    if own is None:
        raise InputError("--kernels: there is no place to keep them")
    if not source.is_dir():
        raise InputError(f"--kernels {source}: is not a folder")
    taken = 0
    for one in wanted:
        for processor in suiting():
            path = path_in(source, one, processor)
            try:
                keep(own, one, processor, read(path, one, processor))
            except FileNotFoundError:
                continue
            except Damaged as error:
                raise InputError(f"{path}: {error}") from None
            taken += 1
            break
    if not taken:
        raise InputError(f"--kernels {source}: {_why_none(source)}")
    return taken


def _why_none(source: Path) -> str:
    """Why a folder has nothing for this machine, from the first object in it."""
    for path in sorted(source.glob(f"*{SUFFIX}")):
        try:
            made = made_for(path.read_bytes()[:MOST_BYTES])
        except (Damaged, OSError):
            continue
        same = (made.get("sources"), made.get("compiler")) == (sources(), compiler())
        if same:
            return f"its objects are for {made.get('cpu')}, or another model, not for {pick()} on this machine"
        return f"its objects are of another version; make them with this one and {compiler()}"
    return "there are no objects in it"


def has(maker: str) -> bool:
    """Whether the cache or the package has an object of a maker that runs here, for whatever model."""
    places = [place for place in (folder(), SHIPPED) if place is not None]
    return any(any(place.glob(f"{maker}-*-{p.name}-*{SUFFIX}")) for place in places for p in suiting())


def is_cold() -> bool:
    """Whether nothing has been compiled for this machine yet by this version."""
    loop = Wanted(LOOP, "", None, pick())
    return find(loop) is None and find(Wanted(LOOP, "", None, pick() + AMX)) is None


def forget_old(place: Path) -> None:
    """Remove the files of a cache that were written first, where there are too many."""
    try:
        files = sorted(place.glob(f"*{SUFFIX}"), key=lambda path: path.stat().st_mtime)
    except OSError:  # another process is doing the same
        return
    for path in files[:-_KEPT]:
        path.unlink(missing_ok=True)
