"""What is installed: bounds of pyproject.toml, locks that name every file by its hash, and what make installs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
LOCKS = {
    "requirements.lock": ("quantize", "report"),
    "requirements-test.lock": ("quantize", "report", "serve", "test"),
}
MACHINES = {
    "Linux x86-64": {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"},
    "Linux ARM": {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "aarch64"},
    "macOS": {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"},
}
# The first releases without known holes: escapes from the sandbox (jinja2), files outside of the model's folder (onnx,
# CVE-2026-27489), recursion (protobuf, CVE-2025-4565, CVE-2026-0994), code from config.json (transformers,
# CVE-2026-4372), unpickling (torch, CVE-2026-24747; distributed, CVE-2024-10096; PyYAML), links in place of lock files
# (filelock, CVE-2026-22701), requests that are read in two ways (h11, CVE-2025-43859; starlette, CVE-2026-48710), fonts
# (pillow, CVE-2026-42308), names of archives (setuptools, CVE-2025-47273).
SAFE = {
    "jinja2": "3.1.6",
    "onnx": "1.21",
    "protobuf": "6.33.5",
    "transformers": "5.3",
    "torch": "2.10",
    "filelock": "3.20.3",
    "h11": "0.16",
    "starlette": "1.0.1",
    "pillow": "12.2",
    "pyyaml": "5.4",
    "distributed": "2024.9",
    "setuptools": "78.1.1",
}


def asked(extras):
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    return [Requirement(line) for line in lines]


def named(text):
    """Requirements of a requirements file, with the hashes of each."""
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if line.strip() and not line.startswith("#"):
            asked_for, *hashes = line.split("--hash=")
            yield Requirement(asked_for.strip()), hashes


def locked(name, environment=None):
    """{package: version} that a lock means for an environment of markers."""
    found = [r for r, _ in named((ROOT / name).read_text()) if r.marker is None or r.marker.evaluate(environment)]
    versions = {canonicalize_name(r.name): str(r.specifier).removeprefix("==") for r in found}
    assert len(versions) == len(found), "a package is there twice"
    return versions


@pytest.mark.parametrize("lock", LOCKS)
def test_every_line_of_a_lock_is_one_version_by_hash(lock):
    for requirement, hashes in named((ROOT / lock).read_text()):
        assert re.fullmatch(r"==[0-9][^,*]*", str(requirement.specifier)) and not requirement.url, requirement
        assert hashes and all(re.fullmatch(r"sha256:[0-9a-f]{64}\s*", value) for value in hashes), requirement


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13", "3.14"])
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_has_what_is_asked_for(lock, machine, python):
    environment = {**MACHINES[machine], "python_version": python, "python_full_version": f"{python}.1"}
    found = locked(lock, environment)
    assert "torch" not in found
    for requirement in asked(LOCKS[lock]):
        name = canonicalize_name(requirement.name)
        if name != "torch" and (requirement.marker is None or requirement.marker.evaluate(environment)):
            assert requirement.specifier.contains(found[name]), requirement
    for constraint, _ in named((ROOT / "constraints.txt").read_text()):
        name = canonicalize_name(constraint.name)
        if name in found and (constraint.marker is None or constraint.marker.evaluate(environment)):
            assert constraint.specifier.contains(found[name]), constraint


def test_the_smaller_lock_is_a_part_of_the_larger():
    small, large = ({f"{r.name}{r.specifier}": h for r, h in named((ROOT / lock).read_text())} for lock in LOCKS)
    assert small and set(small) < set(large)
    for release, hashes in small.items():
        assert [h.strip() for h in large[release]] == [h.strip() for h in hashes], release


def test_what_installed_packages_need_is_locked():
    found = locked("requirements-test.lock")
    open_, seen = asked(LOCKS["requirements-test.lock"]), set()
    while open_:
        requirement = open_.pop()
        name = canonicalize_name(requirement.name)
        extras = {"extra": next(iter(requirement.extras), "")}
        if requirement.marker is not None and not requirement.marker.evaluate(extras):
            continue
        if name != "torch":
            assert name in found, f"{requirement} is in no lock"
            assert requirement.specifier.contains(found[name]), requirement
        if (name, *requirement.extras) not in seen:
            seen.add((name, *requirement.extras))
            needs = [Requirement(line) for line in requires(name) or ()]
            needs = [r for r in needs if r.marker is None or r.marker.evaluate(extras)]
            open_ += [r for r in needs if name != "torch" or not re.match("nvidia|cuda|triton", r.name)]
    assert len(seen) > 60


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_make_installs_by_hash_only(tmp_path):
    command = ["make", "-n", f"VENV={tmp_path}/v", f"{tmp_path}/v/.test"]
    plan = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    installs = [line.split(" install ", 1)[1] for line in plan.splitlines() if " install " in line]
    free = [line for line in installs if not ("--require-hashes" in line and "--only-binary :all:" in line)]
    assert [re.sub("-q --disable-pip-version-check ", "", line) for line in free] == [
        "-c constraints.txt torch",
        "--no-deps --no-build-isolation -e .",
    ]
    assert sorted(line.split(" -r ")[1] for line in installs if line not in free) == sorted(LOCKS)


@pytest.mark.parametrize("name", SAFE)
def test_lower_bounds_have_no_known_holes(name):
    everything = [*asked(PROJECT["optional-dependencies"]), *map(Requirement, PYPROJECT["build-system"]["requires"])]
    bounds = [r for r in everything if canonicalize_name(r.name) == name]
    least = [Version(s.version) for r in bounds for s in r.specifier if s.operator == ">="]
    assert bounds and len(least) == len(bounds) and min(least) >= Version(SAFE[name])


@pytest.mark.parametrize("name", ["numba", "llvmlite", "ziglang"])
def test_compilers_have_an_upper_bound(name):
    bounds = [r for r in asked(PROJECT["optional-dependencies"]) if r.name == name]
    assert bounds and all(any(s.operator == "<" for s in r.specifier) for r in bounds)
