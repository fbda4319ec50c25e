"""What `doctor` shows: all that decides whether and how fast a model runs here. Needs neither torch nor a model."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from export import __version__
from export.contract.errors import InputError
from runtime_py.engine.objects.store import folder as objects_folder
from runtime_py.engine.objects.store import is_cold
from runtime_py.machine import isa
from runtime_py.system.memory import free_memory
from runtime_py.system.thread_pool import available_threads
from toolchain.system.units import size_text

_DISTRIBUTION = "athena-export"
_SHOWN = ("numpy", "numba", "llvmlite", "onnx", "onnxruntime", "tokenizers", "torch", "transformers")
_LITTLE_DISK = 1 << 30  # bytes; kernels take some 60 MB, a small model's export some hundred
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@dataclass(frozen=True)
class Finding:
    """One line of the screen. trouble: what is wrong with it and what helps, if something is."""

    topic: str
    said: str
    trouble: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {"topic": self.topic, "said": self.said, "trouble": self.trouble}


def findings() -> list[Finding]:
    """All of them, in the order of the screen."""
    versions = f"athena-export {__version__}, Python {platform.python_version()}, {platform.platform(terse=True)}"
    return [
        Finding("versions", versions),
        Finding("packages", ", ".join(f"{name} {version}" for name in _SHOWN if (version := _version(name)))),
        *_extras(),
        _instructions(),
        _threads(),
        _memory(),
        _huge_pages(),
        _kernels(),
        _models(),
        *([_device()] if _version("torch") else []),
    ]  # fmt: skip


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _extras() -> list[Finding]:
    """A line of the extras that are whole, and one for each of which a package is missing."""
    wanted: dict[str, list[str]] = {}
    for requirement in metadata.requires(_DISTRIBUTION) or []:
        name, extra = re.match(r"[\w.-]+", requirement), re.search(r"extra == [\"']([\w-]+)", requirement)
        if name and extra:
            wanted.setdefault(extra[1], []).append(name[0])
    missing = {extra: [name for name in names if _version(name) is None] for extra, names in wanted.items()}
    whole = ", ".join(extra for extra, names in missing.items() if not names)
    lines = [
        f"{extra} lacks {', '.join(names)} (pip install '{_DISTRIBUTION}[{extra}]')"
        for extra, names in missing.items()
        if names
    ]
    return [Finding("extras", f"complete: {whole or 'none'}"), *(Finding("", line) for line in lines)]


def _instructions() -> Finding:
    here = ", ".join(isa.available())
    try:
        return Finding("instructions", f"{isa.pick()}{', AMX' if _has_amx() else ''} (this machine has {here})")
    except InputError as error:
        return Finding("instructions", here, f"{error}: unset ATHENA_ISA, or set one of these")


def _has_amx() -> bool:
    return isa.machine_features().issuperset(isa.AMX_FEATURES)


def _threads() -> Finding:
    count, wanted = available_threads(), os.environ.get("ATHENA_THREADS", "")
    said = f"{count} of {os.cpu_count()} processors ({platform.machine()})"
    if wanted and wanted != str(count):
        return Finding("threads", said, f"ATHENA_THREADS={wanted} is no positive number and is not used")
    return Finding("threads", f"{said}{', by ATHENA_THREADS' if wanted else ''}")


def _memory() -> Finding:
    free = free_memory()
    return Finding("memory", "the system does not say" if free is None else f"{size_text(free)} free")


def _huge_pages() -> Finding:
    try:
        found = re.search(r"\[(\w+)\]", _HUGE_PAGES.read_text(encoding="ascii"))
    except (OSError, ValueError):
        found = None
    mode = found[1] if found else "not there"
    if mode in ("always", "madvise"):
        return Finding("huge pages", f"{mode}: used for weights")
    return Finding("huge pages", mode, f"decode is some percent slower without; as root: echo madvise > {_HUGE_PAGES}")


def _kernels() -> Finding:
    folder = objects_folder()
    if folder is None:
        return Finding("kernels", "not kept", "no cache folder can be written: every start compiles for half a minute")
    size = sum(_size(file) for file in folder.rglob("*")) if folder.is_dir() else 0
    state = (
        "none for this version yet; the first run compiles for half a minute"
        if is_cold()
        else "compiled for this version"
    )
    left = _disk(folder)
    trouble = f"{size_text(left)} of disk are left there" if left is not None and left < _LITTLE_DISK else None
    return Finding("kernels", f"{folder}: {size_text(size)}, {state}", trouble)


def _models() -> Finding:
    from toolchain.machine.hub import hub_folder

    folder = hub_folder()
    if not folder.is_dir():
        return Finding("models", f"{folder}: none yet")
    count = sum(1 for one in folder.glob("models--*") if one.is_dir())
    left = _disk(folder)
    trouble = f"{size_text(left)} of disk are left there" if left is not None and left < _LITTLE_DISK else None
    return Finding("models", f"{folder}: {count}; `athena-export models` lists them", trouble)


def _device() -> Finding:
    try:
        import torch
    except Exception as error:  # an installation that is broken in one of many ways
        return Finding(
            "devices", "unknown", f"torch is installed and cannot be imported ({type(error).__name__}: {error})"
        )

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    names += ["Apple MPS"] if torch.backends.mps.is_available() else []
    return Finding("devices", ", ".join(names) + " (--device auto)" if names else "the processor alone")


def _size(file: Path) -> int:
    try:
        return file.lstat().st_size
    except OSError:  # gone meanwhile
        return 0


def _disk(folder: Path) -> int | None:
    place = next((one for one in (folder, *folder.parents) if one.is_dir()), None)
    try:
        return None if place is None else shutil.disk_usage(place).free
    except OSError:
        return None


def print_findings(found: list[Finding]) -> None:
    """A screen of at most 80 columns on a terminal of 80; troubles stand below their line, marked with !."""
    import textwrap

    width = max(shutil.get_terminal_size().columns, 60)
    indent = " " * (max(len(one.topic) for one in found) + 2)
    for one in found:
        first = one.topic.ljust(len(indent))
        print(textwrap.fill(one.said, width, initial_indent=first, subsequent_indent=indent, break_on_hyphens=False))
        if one.trouble:
            print(textwrap.fill(f"! {one.trouble}", width, initial_indent=indent, subsequent_indent=indent + "  ",
                                break_on_hyphens=False))  # fmt: skip
    troubles = sum(one.trouble is not None for one in found)
    print(f"{troubles or 'no'} trouble{'' if troubles == 1 else 's'} found", file=sys.stderr)
