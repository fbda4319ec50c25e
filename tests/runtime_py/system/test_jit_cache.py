"""Compiled code on disk is used exactly as long as nothing that it can come from has changed."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runtime_py.system import jit_cache, sources

# A project of our own with the cache's real code: an answer that depends on every kind of import.
FILES = {
    "runtime_py/__init__.py": "from runtime_py.system import jit_cache\njit_cache.install()\n",
    "runtime_py/system/__init__.py": "",
    "runtime_py/serving/__init__.py": "",
    "runtime_py/serving/app.py": "from runtime_py.engine import kernel\n",
    "runtime_py/engine/__init__.py": "",
    "runtime_py/engine/kernel.py": """
import numba as nb
from runtime_py.engine import helper
from runtime_py.engine.intrinsics import (  # several lines
    add_one,
    double,
)
from runtime_py.package import exported
from export import table
from .relative import near

def late():
    from runtime_py.engine.local import WORTH
    return WORTH

WORTH, STEP = late(), table.read()

@nb.njit(cache=True)
def answer(x):
    return double(add_one(helper.twice(x))) + exported(x) + near(x) + WORTH + STEP
""",
    "runtime_py/engine/helper.py": """
import numba as nb
import export.constants

FACTOR = export.constants.FACTOR

@nb.njit(cache=True)
def twice(x):
    return x * FACTOR
""",
    "runtime_py/engine/intrinsics.py": """
from numba import njit
from numba.core import types
from numba.extending import intrinsic
from llvmlite import ir

@intrinsic
def add_one(typingctx, x):
    def codegen(context, builder, signature, args):
        return builder.add(args[0], ir.Constant(ir.IntType(64), 1))
    return types.int64(types.int64), codegen

@njit
def double(x):
    return x * 2
""",
    "runtime_py/engine/local.py": "WORTH = 1000\n",
    "runtime_py/engine/relative.py": "import numba as nb\n\n@nb.njit\ndef near(x):\n    return 7 * x\n",
    "runtime_py/package/__init__.py": "from runtime_py.package.inner import exported\n",
    "runtime_py/package/inner.py": "import numba as nb\n\n@nb.njit\ndef exported(x):\n    return 3 * x\n",
    "export/__init__.py": "",
    "export/constants.py": "FACTOR = 5\n",
    "export/table.py": """
from pathlib import Path

def read():
    return int((Path(__file__).parent / "levels.json").read_text())
""",
    "export/levels.json": "20000\n",
    "export/unrelated.py": "A = 1\n",
    "toolchain/__init__.py": "",
    "toolchain/cli.py": "import runtime_py.engine.kernel\n",
    "toolchain/quantize/__init__.py": "from runtime_py.system import jit_cache\njit_cache.install()\n",
    "toolchain/quantize/solvers/__init__.py": "",
    "toolchain/quantize/solvers/scalar.py": """
import numba as nb
from toolchain.quantize.means import mean

@nb.njit(cache=True)
def solve(x):
    return mean(x, x + 4)
""",
    "toolchain/quantize/means.py": "import numba as nb\n\n@nb.njit\ndef mean(a, b):\n    return (a + b) // 2\n",
}
REAL = (
    "runtime_py/system/jit_cache.py",
    "runtime_py/system/sources.py",
    "runtime_py/system/compilation.py",
    "export/files/cache_folder.py",
    "export/files/access.py",
    "export/contract/errors.py",
)
PROGRAM = """
from runtime_py.engine.kernel import answer
from toolchain.quantize.solvers.scalar import solve
print(answer(10), solve(10), *(sum(f.stats.cache_hits.values()) for f in (answer, solve)))
"""
BASE = (2 * (10 * 5 + 1) + 30 + 70 + 1000 + 20000, 12)


def make(root: Path) -> Path:
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for name in REAL:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(sources.ROOT / name, root / name)
    return root


def run(root: Path) -> list[int]:
    """The two answers, and how often each kernel came from disk."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA")}
    places = {"PYTHONPATH": str(root), "ATHENA_CACHE_DIR": str(root / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=root, env={**kept, **places}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [int(part) for part in done.stdout.split()]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> Path:
    root = make(tmp_path_factory.mktemp("project") / "root")
    assert run(root) == [*BASE, 0, 0]
    return root


NEAR = "exported as e\nfrom runtime_py.engine.relative import near as exported\n"
CHANGES = {  # file, old, new: by how much the two answers grow
    "callee": ("runtime_py/engine/helper.py", "x * FACTOR", "x * FACTOR + 1", (2, 0)),
    "constant two modules away": ("export/constants.py", "5", "6", (20, 0)),
    "intrinsic": ("runtime_py/engine/intrinsics.py", "(64), 1)", "(64), 2)", (2, 0)),
    "import in a function": ("runtime_py/engine/local.py", "1000", "1001", (1, 0)),
    "relative import": ("runtime_py/engine/relative.py", "7", "8", (10, 0)),
    "behind a package": ("runtime_py/package/inner.py", "3", "4", (10, 0)),
    "package": ("runtime_py/package/__init__.py", "exported\n", NEAR, (40, 0)),
    "data": ("export/levels.json", "20000", "20001", (1, 0)),
    "kernel itself": ("runtime_py/engine/kernel.py", "+ WORTH +", "+ WORTH + 1 +", (1, 0)),
    "quantizer's callee": ("toolchain/quantize/means.py", "// 2", "// 2 + 1", (0, 1)),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGES)
def test_an_edit_of_anything_used_is_compiled(case, compiled, tmp_path):
    root = shutil.copytree(compiled, tmp_path / "root")
    name, old, new, growth = CHANGES[case]
    text = (root / name).read_text()
    assert old in text
    (root / name).write_text(text.replace(old, new))
    expected = [base + more for base, more in zip(BASE, growth)]
    hits = [int(more == 0) for more in growth]
    assert run(root) == [*expected, *hits]  # what the edit does not concern comes from disk
    assert run(root) == [*expected, 1, 1]
    (root / name).write_text(text)
    assert run(root) == [*BASE, 1, 1]  # an earlier state is still there


def test_edits_that_no_kernel_sees_compile_nothing(compiled, tmp_path):
    root = shutil.copytree(compiled, tmp_path / "root")
    for name in ("runtime_py/serving/app.py", "export/unrelated.py", "toolchain/cli.py", "toolchain/__init__.py"):
        (root / name).write_text((root / name).read_text() + "B = 2\n")
    (root / "runtime_py" / "new.py").write_text("C = 3\n")
    before = sorted(p.name for p in (root / "cache").rglob("*.nb?"))
    assert run(root) == [*BASE, 1, 1]
    assert sorted(p.name for p in (root / "cache").rglob("*.nb?")) == before


def test_old_states_do_not_pile_up(compiled, tmp_path):
    root = shutil.copytree(compiled, tmp_path / "root")
    for number in range(6):
        (root / "toolchain/quantize/solvers/scalar.py").write_text(
            FILES["toolchain/quantize/solvers/scalar.py"] + f"A = {number}\n"
        )
        assert run(root) == [*BASE, 1, 0]
    folders = [p.name.rpartition("-")[0] for p in (root / "cache" / "kernels").iterdir()]
    assert folders.count("toolchain.quantize.solvers.scalar") == 4
    assert folders.count("runtime_py.engine.kernel") == 1


def test_kernels_of_files_that_are_long_gone_are_removed(compiled, tmp_path):
    root = shutil.copytree(compiled, tmp_path / "root")
    kernels, solver = root / "cache" / "kernels", root / "toolchain/quantize/solvers/scalar.py"
    gone, kept = kernels / ("runtime_py.engine.gone-" + 16 * "0"), kernels / ("runtime_py.engine.other-" + 16 * "0")
    still = next(kernels.glob("runtime_py.engine.kernel-*"))
    for folder, days in ((gone, 31), (kept, 29), (still, 31)):
        folder.mkdir(exist_ok=True)
        os.utime(folder, (time.time() - 86400 * days,) * 2)
    solver.write_text(solver.read_text() + "A = 1\n")
    assert run(root) == [*BASE, 1, 0]
    assert (gone.exists(), kept.exists(), still.exists()) == (False, True, True)


COMPILED = """
import importlib, sys
from numba.core.dispatcher import Dispatcher
module = importlib.import_module(sys.argv[1])
own = [f for f in vars(module).values() if isinstance(f, Dispatcher) and f.py_func.__module__ == sys.argv[1]]
print(*{type(f._cache).__name__ for f in own})
"""


@pytest.mark.parametrize("module", ["toolchain.numerics.kmeans", "toolchain.quantize.solvers.scalar"])
def test_whoever_imports_a_module_first_its_kernels_are_kept_here(module):
    done = subprocess.run([sys.executable, "-c", COMPILED, module], cwd=sources.ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["KernelCache"], done.stderr


def imported(path: Path) -> set[Path]:
    """Project modules that Python's own parser finds imported, as files; packages without their __init__.py."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        found |= {sources.ROOT.joinpath(*name.split(".")).with_suffix(".py") for name in names}
    return {file for file in found if file.is_file()}


def test_every_import_of_the_project_is_found():
    files = [file for package in sources.PACKAGES for file in (sources.ROOT / package).rglob("*.py")]
    assert len(files) > 200
    for file in files:
        assert imported(file) <= sources.direct(file), file


def test_kernels_depend_on_no_server_and_no_command():
    files = [file for package in ("runtime_py", "toolchain") for file in (sources.ROOT / package).rglob("*.py")]
    kernels = [file for file in files if "njit(" in file.read_text()]
    assert len(kernels) > 15
    apart = ("runtime_py/serving", "runtime_py/chat", "toolchain/cli")
    for file in kernels:
        used = {place.relative_to(sources.ROOT).as_posix() for place in sources.closure(file)}
        assert not [name for name in used if name.startswith(apart)]
    lowering = sources.ROOT / "runtime_py" / "simd" / "lowering.py"
    assert lowering in sources.closure(sources.ROOT / "runtime_py" / "engine" / "loop" / "loop.py")


def test_functions_outside_the_project_are_left_to_numba(tmp_path):
    (tmp_path / "other.py").write_text("def f(): pass\n")
    assert jit_cache.AthenaCacheLocator.from_function(lambda: 0, str(tmp_path / "other.py")) is None
    assert jit_cache.AthenaCacheLocator.from_function(lambda: 0, "<stdin>") is None
