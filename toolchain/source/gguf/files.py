"""Which GGUF files make up the model that a file or a folder names, and what they hold together."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from export.contract.errors import InputError
from toolchain.source.gguf.header import GgufHeader, GgufTensor, read_header

SUFFIX = ".gguf"
_PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
_MOST_PARTS = 10_000


@dataclass(frozen=True)
class GgufModel:
    """All parts of one model."""

    first: GgufHeader  # it has the metadata
    paths: tuple[Path, ...]
    tensors: dict[str, GgufTensor]


def is_gguf(path: Path) -> bool:
    return path.suffix.lower() == SUFFIX


def only_gguf(folder: Path) -> Path | None:
    """The one model of a folder that has GGUF files and no other model; None where there is none or another.

    Raises InputError where it holds several.
    """
    found = sorted(path for path in folder.iterdir() if is_gguf(path) and path.is_file())
    others = [folder / "config.json", *folder.glob("*.safetensors"), *folder.glob("adapter_*")]
    if not found or any(path.exists() for path in others):
        return None
    models = {_PART.sub(r"\g<stem>-of-\g<count>", path.name): path for path in reversed(found)}
    if len(models) > 1:
        names = ", ".join(sorted(path.name for path in models.values()))
        raise InputError(f"{folder}: holds several GGUF models ({names}); give one of the files")
    return found[0]


def parts(path: Path) -> tuple[Path, ...]:
    """The files of the model that one of them, or its only one, names. Raises InputError when one is missing."""
    match = _PART.fullmatch(path.name)
    if match is None:
        return (path,)
    number, count = int(match["number"]), int(match["count"])
    if not 1 <= number <= count <= _MOST_PARTS:
        raise InputError(f"{path}: the name says part {number} of {count}")
    names = [f"{match['stem']}-{i:05d}-of-{match['count']}{path.suffix}" for i in range(1, count + 1)]
    for name in names:
        if not (path.parent / name).is_file():
            raise InputError(f"{path.parent / name}: this file is missing, {path.name} is another part of the model")
    return tuple(path.parent / name for name in names)


def open_gguf(path: Path) -> GgufModel:
    """The headers of all parts, put together. Raises InputError when they are no whole model."""
    paths = parts(path)
    headers = [read_header(part) for part in paths]
    tensors: dict[str, GgufTensor] = {}
    for number, header in enumerate(headers):
        stated = header.values.get("split.count", 0) or 1
        if stated != len(paths) or (len(paths) > 1 and header.values.get("split.no") != number):
            place = f"part {header.values.get('split.no')!r} of {stated!r} (from 0)"
            raise InputError(f"{header.path}: says that it is {place}; its name says {number} of {len(paths)}")
        if twice := tensors.keys() & header.tensors.keys():
            raise InputError(f"{header.path}: tensor {min(twice)} is in another part, too")
        tensors |= header.tensors
    total = headers[0].values.get("split.tensors.count", len(tensors))
    if total != len(tensors):
        raise InputError(f"{paths[0]}: the model has {total!r} tensors, its files hold {len(tensors)}")
    return GgufModel(headers[0], paths, tensors)
