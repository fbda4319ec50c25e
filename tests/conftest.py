"""Shared fixtures: the bundled model with its quantized export, so that every clone runs the tests.

A test that needs another trained model takes it from ../shared, or the folder that ATHENA_SHARED names, and skips,
saying so, where that is not.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
from hypothesis import settings

from toolchain.calibrate.corpus import standard_library_text

SHARED = Path(os.environ.get("ATHENA_SHARED") or Path(__file__).resolve().parents[2] / "shared")
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
def demo_model() -> Path:
    """The bundled model: Llama's form, 4 layers of 192, tied head, 1536 tokens."""
    return DEMO


@pytest.fixture(scope="session")
def demo_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400,000 characters of the language that the bundled model was trained on."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(standard_library_text("train", 400_000), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def demo_checkpoint(demo_text: Path, tmp_path_factory: pytest.TempPathFactory):
    """The bundled model quantized to 3 bits with Athena: a QuantizedCheckpoint."""
    return _checkpoint(DEMO, str(demo_text), "0:0.5", tmp_path_factory.mktemp("demo") / "quantized")


@pytest.fixture(scope="session")
def demo_folder(demo_checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its model folder."""
    return _package(demo_checkpoint, tmp_path_factory.mktemp("demo-folder") / "model")


@pytest.fixture(scope="session")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose matrices have 256 and 768 columns: widths that every kernel, format and group takes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 3, "vocab_size": 1536}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 512}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, initializer_range=0.06, bos_token_id=0, eos_token_id=0))
    folder = tmp_path_factory.mktemp("wide") / "source"
    model.half().save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(DEMO / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def wide_checkpoint(wide_model: Path, tmp_path_factory: pytest.TempPathFactory):
    """wide_model quantized to 3 bits on the built-in text, in few passes."""
    out = tmp_path_factory.mktemp("wide") / "quantized"
    return _checkpoint(wide_model, "built-in", None, out, passes=1, sequences=16)


@pytest.fixture(scope="session")
def wide_folder(wide_checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its model folder."""
    return _package(wide_checkpoint, tmp_path_factory.mktemp("wide-folder") / "model")


@pytest.fixture(scope="session")
def served_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model in 8 bits, so that it behaves as its source."""
    root = tmp_path_factory.mktemp("served")
    settings = {"bits": 8, "method": "rtn", "sequences": 2, "sequence_length": 16}
    return _package(_checkpoint(DEMO, "built-in", None, root / "quantized", **settings), root / "model")


@pytest.fixture(scope="session")
def native_library(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of the codebook operators' native library, compiled for this machine."""
    from export.contract.errors import InputError
    from export.native.build import build_library, this_machine

    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("no compiler: pip install 'athena-export[native]'")
    try:
        machine = this_machine()
    except InputError as error:
        pytest.skip(str(error))
    return str(build_library(machine, tmp_path_factory.mktemp("native") / "ops.so"))


def _checkpoint(model: Path, text: str, part: str | None, out: Path, **settings):
    from toolchain.pipeline.run import CalibrationChoice, quantize_model
    from toolchain.settings.quantize import QuantizeSettings

    chosen = {"bits": 3, "sequences": 64, "sequence_length": 256, **settings}
    return quantize_model(str(model), out, QuantizeSettings(**chosen), CalibrationChoice(text, part), quiet=True)


def _package(checkpoint, out: Path) -> Path:
    from export.model_folder import install_folder
    from toolchain.pipeline.packaging import package_checkpoint

    install_folder(package_checkpoint(checkpoint, out, quiet=True), out, force=False)
    return out
