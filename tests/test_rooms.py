"""The folders of the product: each does one thing, few files, arrows between them go one way, README says the same."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# What may import what, among the packages.
MAY = {
    "export": {"targets"},
    "runtime_py": {"export", "targets"},
    "hw_model": {"export", "targets"},
    "toolchain": {"export", "runtime_py", "hw_model", "targets"},
    "targets": set(),
}
MOST_FILES = 16  # in a folder, __init__.py included
REGISTRIES = {"export/graph/archs"}  # one small file for each of many things


@cache
def modules() -> dict[str, Path]:
    """Every module of the product by its dotted name."""
    found = {}
    for path in sorted(file for package in MAY for file in (ROOT / package).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def imports(path: Path) -> set[str]:
    """Modules of the product that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (names & modules().keys()) or {node.module}
    return found & modules().keys()


def room(module: str) -> str:
    return modules()[module].parent.relative_to(ROOT).as_posix()


@cache
def arrows() -> dict[str, set[str]]:
    """By folder, the folders that its files import from."""
    found: dict[str, set[str]] = {}
    for name, path in modules().items():
        found.setdefault(room(name), set()).update(room(other) for other in imports(path))
    return {folder: others - {folder} for folder, others in found.items()}


def test_packages_import_what_they_may():
    for folder, others in arrows().items():
        package = folder.split("/")[0]
        assert {other.split("/")[0] for other in others} <= MAY[package] | {package}, folder


def test_arrows_between_folders_go_one_way():
    waiting = {folder: set(others) for folder, others in arrows().items()}
    while free := [folder for folder, others in waiting.items() if not others & waiting.keys()]:
        for folder in free:
            del waiting[folder]
    assert not waiting, f"in a circle, or behind one: {sorted(waiting)}"


@pytest.mark.parametrize("folder", sorted(arrows()))
def test_a_folder_has_few_files_and_says_what_it_does(folder):
    files = list((ROOT / folder).glob("*.py"))
    assert folder in REGISTRIES or len(files) <= MOST_FILES
    first = ast.get_docstring(ast.parse((ROOT / folder / "__init__.py").read_text(encoding="utf-8")))
    assert first, f"{folder}/__init__.py does not say what the folder does"


def test_readme_lists_the_folders_as_they_introduce_themselves():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = dict(re.findall(r"^\| `([\w/]+)/` \| (.+) \|$", text[text.index("## The code") :], re.MULTILINE))
    found = {}
    for folder in arrows():
        document = ast.get_docstring(ast.parse((ROOT / folder / "__init__.py").read_text(encoding="utf-8")))
        found[folder] = (document or "").split("\n")[0]
    assert table == found
