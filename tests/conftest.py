"""Shared fixtures: the real models of ../shared when they are there, and one quantized export of each per session."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
from hypothesis import settings

SHARED = Path(__file__).resolve().parents[2] / "shared"
# The first example of a property pays for just-in-time compilation: a deadline would measure the compiler.
settings.register_profile("athena", deadline=None)
settings.load_profile("athena")
DEMO = Path(__file__).resolve().parents[1] / "toolchain" / "demo" / "athena-demo-2M"


def shared(path: str) -> Path:
    """A file or folder of ../shared; skips the test, saying so, when it is not there."""
    found = SHARED / path
    if not found.exists():
        pytest.skip(f"{found} is not on this machine")
    return found


@pytest.fixture(scope="session")
def stories() -> Path:
    return shared("models/stories260K")


@pytest.fixture(scope="session")
def tinystories_text() -> Path:
    return shared("text/tinystories_val.txt")


@pytest.fixture(scope="session")
def stories_checkpoint(stories: Path, tinystories_text: Path, tmp_path_factory: pytest.TempPathFactory):
    """stories260K quantized to 3 bits with Athena: (quantized checkpoint, its folder)."""
    return _checkpoint(stories, str(tinystories_text), "0:0.5", tmp_path_factory.mktemp("stories") / "quantized")


@pytest.fixture(scope="session")
def stories_folder(stories_checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _package(stories_checkpoint, tmp_path_factory.mktemp("stories-folder") / "model")


@pytest.fixture(scope="session")
def scribe_checkpoint(tmp_path_factory: pytest.TempPathFactory):
    """scribe-6M quantized to 3 bits on the built-in text, few passes (its quality is measured by the benchmarks)."""
    model = shared("models/scribe-6M")
    out = tmp_path_factory.mktemp("scribe") / "quantized"
    return _checkpoint(model, "built-in", None, out, passes=1, sequences=16)


@pytest.fixture(scope="session")
def scribe_folder(scribe_checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _package(scribe_checkpoint, tmp_path_factory.mktemp("scribe-folder") / "model")


@pytest.fixture(scope="session")
def native_library(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of the codebook operators' native library, compiled for this machine."""
    from export.errors import InputError
    from export.native.build import build_library, this_machine

    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("no compiler: pip install 'athena-export[native]'")
    try:
        machine = this_machine()
    except InputError as error:
        pytest.skip(str(error))
    return str(build_library(machine, tmp_path_factory.mktemp("native") / "ops.so"))


def _checkpoint(model: Path, text: str, part: str | None, out: Path, **settings):
    from toolchain.pipeline import CalibrationChoice, quantize_model
    from toolchain.quantize.settings import QuantizeSettings

    chosen = {"bits": 3, "sequences": 64, "sequence_length": 256, **settings}
    return quantize_model(str(model), out, QuantizeSettings(**chosen), CalibrationChoice(text, part), quiet=True)


def _package(checkpoint, out: Path) -> Path:
    from export.folder import install_folder
    from toolchain.packaging import package_checkpoint

    install_folder(package_checkpoint(checkpoint, out, quiet=True), out, force=False)
    return out
