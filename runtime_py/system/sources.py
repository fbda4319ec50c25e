"""Which source files a module's compiled code can come from: itself, and all project files it imports, directly or not.

Imports are found by their text, wherever they stand, because parsing every file at each start takes longer than
everything else of it; what only looks like one (in a string) adds a file too many, which costs a compilation. Of a
package only the submodule counts where a name means one, else its __init__.py. Data files count with the module that
names them in a string.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("runtime_py", "toolchain", "export", "targets", "hw_model")
_FROM = re.compile(r"^[ \t]*from[ \t]+(\.*[\w.]*)[ \t]+import[ \t]*(\([^)]*\)|[^\n]*)", re.MULTILINE)
_IMPORT = re.compile(r"^[ \t]*import[ \t]+([^\n]+)", re.MULTILINE)
_STRING = re.compile(r"[\"']([\w./-]+\.\w+)[\"']")


def digest(path: Path) -> str:
    """16 hexadecimal digits over the names and bytes of every file that `path`'s compiled code can come from."""
    found = hashlib.sha256()
    for file in sorted(closure(path)):
        found.update(f"{file.relative_to(ROOT).as_posix()}\0{_file_digest(file)}\0".encode())
    return found.hexdigest()[:16]


def closure(path: Path) -> set[Path]:
    """The file itself and all project files it depends on."""
    seen, waiting = {path}, [path]
    while waiting:
        for file in direct(waiting.pop()) - seen:
            seen.add(file)
            waiting.append(file)
    return seen


@cache
def direct(path: Path) -> frozenset[Path]:
    """Project files that a source file names: modules it imports, data files beside it."""
    if path.suffix != ".py":
        return frozenset()
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    found: set[Path] = set()
    for module, names in _FROM.findall(text):
        package = _absolute(path, module)
        for name in re.sub(r"#[^\n]*|[()]", "", names).split(","):
            found |= _files_of(package, name.split()[0] if name.split() else "")
    for names in _IMPORT.findall(text):
        for name in names.split("#")[0].split(","):
            found |= _files_of(name.split()[0] if name.split() else "", "")
    for name in _STRING.findall(text):
        place = path.parent / name
        if place.suffix != ".py" and place.is_file():
            found.add(place.resolve())
    return frozenset(file for file in found if file.is_relative_to(ROOT))


def _absolute(path: Path, module: str) -> str:
    """A module name as `from` has it, without leading dots."""
    dots = len(module) - len(module.lstrip("."))
    if not dots:
        return module
    package = path.relative_to(ROOT).parts[:-dots]
    return ".".join([*package, *filter(None, [module.lstrip(".")])])


def _files_of(module: str, name: str) -> set[Path]:
    """Files behind `from module import name`, or behind `import module` where name is empty."""
    if module.partition(".")[0] not in PACKAGES:
        return set()
    place = ROOT.joinpath(*module.split("."))
    if place.with_suffix(".py").is_file():
        return {place.with_suffix(".py")}
    own = place / "__init__.py"
    inner = {file for file in (place / f"{name}.py", place / name / "__init__.py") if name and file.is_file()}
    binds = own.is_file() and (not inner or re.search(rf"\b{re.escape(name)}\b", own.read_text(encoding="utf-8")))
    return inner | ({own} if binds else set())


@cache
def _file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
