"""What is installed: bounds of pyproject.toml, and locks that name every file by its hash."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCKS = {
    "requirements.lock": ("quantize", "report"),
    "requirements-test.lock": ("quantize", "report", "serve", "test"),
}
SAFE = {
    "jinja2": "3.1.6",
    "h11": "0.16.0",
    "starlette": "0.49.1",
    "protobuf": "6.31.1",
    "torch": "2.8",
    "pyyaml": "6.0.1",
}


def asked(extras):
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    return [Requirement(line) for line in lines]


def locked(name):
    """{package: (version, number of hashes)}"""
    entries = re.split(r"\n(?=\S)", (ROOT / name).read_text(encoding="utf-8"))
    found = (re.match(r"([a-z0-9._-]+)==([^ ;\\]+)", entry) for entry in entries)
    return {m[1]: (m[2], entry.count("--hash=sha256:")) for m, entry in zip(found, entries) if m}


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_has_everything_by_hash(lock):
    found = locked(lock)
    assert all(hashes > 0 for _, hashes in found.values())
    for requirement in asked(LOCKS[lock]):
        name = requirement.name.lower().replace("_", "-")
        if name == "torch" or (requirement.marker and not requirement.marker.evaluate({"python_version": "3.11"})):
            continue
        assert requirement.specifier.contains(found[name][0]), name
    assert "torch" not in found


@pytest.mark.parametrize("name", SAFE)
def test_lower_bounds_have_no_known_holes(name):
    bounds = [r for r in asked(PROJECT["optional-dependencies"]) if r.name.lower() == name]
    least = [Version(s.version) for r in bounds for s in r.specifier if s.operator == ">="]
    assert least and min(least) >= Version(SAFE[name])


@pytest.mark.parametrize("name", ["numba", "llvmlite"])
def test_the_compiler_has_an_upper_bound(name):
    (bound,) = [r for r in asked(()) if r.name == name]
    assert any(s.operator == "<" for s in bound.specifier)
