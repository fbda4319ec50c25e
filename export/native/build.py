"""Compiles the native library: every instruction set of a machine in one file, picked when it is loaded.

The compiler is Zig's C compiler, because pip installs it and it compiles for other machines as well. Linked against
glibc 2.17 symbols only, the file runs on every Linux that onnxruntime's own wheels run on.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from export.contract.errors import InputError
from export.files.access import write_bytes
from export.files.cache_folder import NoCache, private_cache

_SOURCES = Path(__file__).parent
_FLAGS = ("-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror")
_TIMEOUT = 600  # seconds for one file; a cold compiler cache on a slow machine


@dataclass(frozen=True)
class Machine:
    """What the compiler is told."""

    target: str  # Zig's name of processor, system and oldest libc
    baseline: str  # processor that everything but the kernels is compiled for
    kernels: dict[str, str]  # instruction set as in runtime_py/machine/isa.py -> processor features


MACHINES = {
    "x86_64": Machine(
        "x86_64-linux-gnu.2.17",
        "x86_64",
        {
            "portable": "x86_64",
            "avx2": "x86_64_v3",
            "avx2vnni": "x86_64_v3+avxvnni",
            "avx512": "x86_64_v4+avx512vnni",
            "avx512vbmi": "x86_64_v4+avx512vnni+avx512vbmi",
            "amx": "x86_64_v4+avx512vnni+avx512vbmi+amx_tile+amx_int8",
        },
    ),
    "aarch64": Machine(
        "aarch64-linux-gnu.2.17",
        "generic",
        {"portable": "generic", "neon": "generic", "neondot": "generic+dotprod"},
    ),
}


def local_machine() -> str | None:
    """Name in MACHINES of the machine this runs on; None when there is none."""
    name = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    return name if name in MACHINES and sys.platform.startswith("linux") else None


def this_machine() -> str:
    """The same. Raises InputError when there is none."""
    name = local_machine()
    if name is None:
        raise InputError(f"the native library is built for Linux on {' and '.join(MACHINES)}; choose one by --machine")
    return name


def library_name(machine: str) -> str:
    """File name of the library for a machine."""
    return f"libathena_ops-{machine}.so"


def build_library(machine: str, destination: Path) -> Path:
    """Compile the library for `machine` (a name in MACHINES) and move it to the file `destination`; returns it.

    Raises InputError for an unknown machine, without the ziglang package, or with the compiler's first error.
    """
    if machine not in MACHINES:
        raise InputError(f"--machine {machine!r} is unknown; there are {', '.join(MACHINES)}")
    if importlib.util.find_spec("ziglang") is None:
        raise InputError("the native library needs a compiler: pip install 'athena-export[native]'")
    plan = MACHINES[machine]
    with tempfile.TemporaryDirectory(prefix="athena-native-") as scratch:
        folder = Path(scratch)
        jobs: list[tuple[str, str, str, tuple[str, ...]]]
        jobs = [("operators.c", "operators", plan.baseline, ()), ("dispatch.c", "dispatch", plan.baseline, ())]
        for isa, processor in plan.kernels.items():
            jobs.append(("kernels.c", isa, processor, (f"-DISA={isa}", f"-DISA_{isa}")))

        def compiled(job: tuple[str, str, str, tuple[str, ...]]) -> Path:
            source, name, processor, defines = job
            out = folder / f"{name}.o"
            _compile(folder, plan.target, f"-mcpu={processor}", *_FLAGS, *defines, "-c", _SOURCES / source, "-o", out)
            return out

        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            objects = list(pool.map(compiled, jobs))
        made = folder / destination.name
        _compile(folder, plan.target, "-shared", "-s", "-o", made, *objects)
        destination.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(destination, made.read_bytes())
    return destination


def _compile(scratch: Path, target: str, *arguments: str | Path) -> None:
    """Run the compiler in the folder `scratch`: Python would take its modules from the current one."""
    command = [sys.executable, "-m", "ziglang", "cc", "-target", target, *map(str, arguments)]
    environment = {"ZIG_GLOBAL_CACHE_DIR": str(_kept_objects(scratch)), **os.environ}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT, cwd=scratch, env=environment
        )
    except subprocess.TimeoutExpired:
        raise InputError(f"the compiler took more than {_TIMEOUT} s for {arguments[-3]}") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or ["?"]
        raise InputError(f"the compiler failed: {lines[0].strip()}")


def _kept_objects(scratch: Path) -> Path:
    """Where the compiler keeps what it has compiled: a place that only the user can write to, or just for this run."""
    try:
        return private_cache("zig")
    except NoCache:
        return scratch
