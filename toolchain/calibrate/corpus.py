"""English text that is on every machine with Python: the standard library's documentation strings.

The default training text of the demo model, and what `eval --text held-out` takes. Modules are parsed, never
imported. One module in sixteen (by a hash of its name) is held out, so that perplexity can be measured on text that
neither calibration nor demo training has seen.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import sysconfig
from pathlib import Path
from typing import Literal

HELD_OUT_ONE_IN = 16


def is_held_out(module_path: str) -> bool:
    """Whether a module (path relative to the standard library, '/'-separated) belongs to the evaluation part."""
    return hashlib.sha256(module_path.encode()).digest()[0] % HELD_OUT_ONE_IN == 0


def _docstrings(source: str) -> list[str]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
    return [inspect.cleandoc(text) for text in found if text and len(text) > 40]


def standard_library_text(part: Literal["train", "held-out"], max_characters: int | None = None) -> str:
    """Documentation strings of the running Python's standard library, in path order, joined by blank lines.

    Deterministic for one Python version. Test packages and site-packages are left out.
    """
    root = Path(sysconfig.get_path("stdlib"))
    skip = {"site-packages", "test", "tests", "idle_test", "__pycache__", "lib2to3", "turtledemo"}
    pieces: list[str] = []
    size = 0
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if skip.intersection(relative.parts) or is_held_out(relative.as_posix()) != (part == "held-out"):
            continue
        try:
            source = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        for text in _docstrings(source):
            pieces.append(text)
            size += len(text) + 2
        if max_characters is not None and size >= max_characters:
            break
    joined = "\n\n".join(pieces)
    return joined if max_characters is None else joined[:max_characters]
