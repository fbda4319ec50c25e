"""The wheel and the source archive: complete, and a folder runs from the wheel where torch cannot be imported."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("export", "hw_model", "runtime_py", "targets", "toolchain")
QUANTIZE = (
    "torch",
    "transformers",
    "safetensors",
    "huggingface_hub",
    "onnx_ir",
    "joblib",
    "threadpoolctl",
    "filelock",
    "yaml",
    "gguf",
    "requests",
)  # modules of the extra
_NOT_SHIPPED = ("toolchain/demo/README.md",)


def tracked(*places: str) -> list[str]:
    done = subprocess.run(["git", "ls-files", "-z", *places], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path]:
    """(wheel, source archive), built from a copy of what git tracks."""
    work = tmp_path_factory.mktemp("package")
    for name in tracked(*PACKAGES, "pyproject.toml", "README.md", "LICENSE"):
        (work / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (work / "tree" / name).write_bytes((ROOT / name).read_bytes())
    code = "import sys; from setuptools import build_meta as b; to = sys.argv[1]; b.build_wheel(to); b.build_sdist(to)"
    done = subprocess.run([sys.executable, "-c", code, str(work)], cwd=work / "tree", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,), (archive,) = work.glob("*.whl"), work.glob("*.tar.gz")
    return wheel, archive


def test_nothing_is_missing(built):
    wheel, archive = built
    wanted = set(tracked(*PACKAGES)) - set(_NOT_SHIPPED)
    assert wanted - set(zipfile.ZipFile(wheel).namelist()) == set()
    with tarfile.open(archive) as found:
        inside = {name.partition("/")[2] for name in found.getnames()}
    assert wanted - inside == set()
    assert wheel.stat().st_size < 8_000_000


def test_it_runs_without_torch(built, demo_folder, tmp_path):
    target = tmp_path / "site"
    with zipfile.ZipFile(built[0]) as wheel:
        wheel.extractall(target)
    (target / "sitecustomize.py").write_text(f"import sys\nfor name in {QUANTIZE}:\n    sys.modules[name] = None\n")
    environment = {**os.environ, "PYTHONPATH": str(target)}
    for arguments in (
        ["--version"], ["run", str(demo_folder), "--prompt", "Once", "--max-tokens", "4"], ["doctor"],
        ["adapter", "list", str(demo_folder), "--json"],
    ):  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "toolchain", *arguments],
            cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0 and done.stdout.strip(), done.stderr[-2000:]


def test_what_runs_and_serves_imports_nothing_of_the_extra_that_quantizes():
    needed = "runtime_py.load, runtime_py.text.encoder, runtime_py.serving.opening, toolchain.adapters.adding"
    code = f"import sys\nfor name in {QUANTIZE}: sys.modules[name] = None\nimport {needed}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
