"""The abq method end to end: quantize, export, run; what is stored; the same results in onnxruntime; refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from export.artefacts.checkpoint import QuantizedCheckpoint
from export.artefacts.reader import read_graph
from export.contract.errors import InputError
from export.contract.operators.integers import SDR_MATMUL
from hw_model.graph_work.nodes import uniform
from runtime_py.engine.engine import Engine
from runtime_py.load import open_model
from runtime_py.reference.session import Session
from tests.conftest import DEMO, _checkpoint
from tests.export.graph.families import random_text, tiny_model, write_tokenizer
from tests.toolchain.quantize.test_qrazor import _folder
from tests.toolchain.quantize.test_tender import onnxruntimes, text_ids
from toolchain.pipeline.random import write_random_folder
from toolchain.settings.presets import Quantization
from toolchain.settings.quantize import QuantizeSettings
from toolchain.settings.razor import RazorSettings

INTEGERS = {"activation_bits": 8, "activation_basis": 8, "activation_unit": "token"}


def made(out: Path, model: Path = DEMO, **given) -> Path:
    razor = {**INTEGERS, **given.pop("razor", {})}
    chosen = {"method": "abq", "bits": 4, "sequences": 4, "sequence_length": 64, "block_steps": 3, **given}
    return _folder(model, out, razor=razor, **chosen)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model at W2*A8."""
    return made(tmp_path_factory.mktemp("abq"), bits=2, bit_balance=True)


def test_three_runtimes_agree(folder):
    """Floats between the operators differ in their last bits: then a code may flip, a small step with 8 bits."""
    ids = text_ids(24)
    model, why = open_model(folder)
    assert isinstance(model, Engine), why
    session = Session(folder)
    plain, engine = session.forward(session.new_state(), ids), model.forward(model.new_state(), ids)
    theirs = onnxruntimes(folder, ids)
    assert ((plain - theirs) ** 2).mean() < 1e-3 * plain.var()
    assert ((plain - engine) ** 2).mean() < 1e-3 * plain.var()


def test_five_levels_are_stored_as_uniform_codes(folder):
    graph = read_graph(folder)
    nodes = [node for node in graph.nodes if node.op_type == SDR_MATMUL]
    assert len(nodes) == 4 * 7
    for node in nodes:
        book = next(graph.weights[name] for name in node.inputs if name.endswith("codebook"))
        assert book.reshape(-1).tolist() == [-2, -1, 0, 1, 2, 2, 2, 2] and uniform(book)
    record = QuantizedCheckpoint(folder.parent / "quantized").records["model.layers.0.mlp.up_proj"]
    assert record.matrix_layout().bits == 3


def test_a_run_that_was_cut_off_ends_in_the_same_bytes(tmp_path):
    tiny_model("llama", source := tmp_path / "source")
    write_tokenizer(source)
    text = random_text(tmp_path / "text.txt")
    out, razor = tmp_path / "q", RazorSettings(**INTEGERS)  # type: ignore[arg-type]
    options = {"method": "abq", "bits": 3, "block_steps": 4, "sequences": 4, "sequence_length": 32, "razor": razor}
    _checkpoint(source, str(text), None, out, **options)
    whole = {path.name: path.read_bytes() for path in out.glob("*.safetensors")}
    for name in ("block-00001", "outside"):
        (out / f"{name}.safetensors").unlink()
    manifest = json.loads((out / "athena.json").read_text())
    dropped = ("totals", "tensors", "shard_prefix")
    (out / "athena.json").write_text(json.dumps({k: v for k, v in manifest.items() if k not in dropped}))
    checkpoint = _checkpoint(source, str(text), None, out, **options)
    assert whole == {path.name: path.read_bytes() for path in out.glob("*.safetensors")}
    norm = checkpoint.tensor("model.layers.1.input_layernorm.weight", "")
    assert np.isfinite(norm).all() and norm.size == 32


def test_what_the_method_sets_and_what_wins_over_it():
    found = Quantization.from_given({"method": "abq", "bits": 2, "bit_balance": True}).settings
    assert (found.razor.activation_bits, found.razor.activation_basis, found.razor.activation_unit) == (8, 8, "token")
    assert found.block_steps > 0 and not found.tune_steps
    found = Quantization.from_given({"method": "abq", "activation_bits": 4, "block_steps": 5}).settings
    assert (found.bits, found.razor.activation_bits, found.razor.activation_basis, found.block_steps) == (4, 4, 4, 5)
    assert not Quantization.from_given({"method": "abq", "activation_bits": 0}).settings.razor.activation_bits


@pytest.mark.parametrize(
    "given, message",
    [
        ({"bits": 1}, "--bits 2 to 8"),
        ({"bits": None, "budget": 3.5}, "takes --bits, no --budget"),
        ({"bits": 3, "bit_balance": True}, "--bit-balance takes --bits 2"),
        ({"method": "gptq", "bit_balance": True}, "--bit-balance is for --method abq"),
        ({"razor": RazorSettings(activation_bits=8)}, "--activation-unit token"),
        ({"razor": RazorSettings(activation_bits=8, activation_unit="token")}, "--activation-basis"),
        ({"razor": RazorSettings(activation_bits=8, activation_groups=4)}, "--activation-groups"),
        ({"group_size": 64}, "--group-size"),
        ({"rank": 2}, "--rank"),
        ({"outliers": 0.01, "razor": RazorSettings()}, "--outliers"),
        ({"tune_steps": 3}, "--tune-steps"),
        ({"guided": True}, "--guided"),
        ({"asymmetric": True}, "--asymmetric"),
        ({"format": "trellis"}, "--format trellis"),
        ({"nested": 2}, "--format nested"),
    ],
)
def test_impossible_settings_are_refused(given, message):
    razor = RazorSettings(**INTEGERS)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=message):
        QuantizeSettings(**{"method": "abq", "bits": 4, "razor": razor, **given})


@pytest.mark.parametrize(
    "variant, message",
    [
        ("bert", "an encoder"),
        ("mixtral", "mixture of experts"),
        ("lfm2", "keep a state"),
        ("mamba2", "keep a state"),
        ("gemma3n_text", "share keys and values"),
        ("gemma4_text", "share keys and values"),
    ],
)
def test_models_that_it_is_not_for_are_refused(variant, message, tmp_path):
    tiny_model(variant, source := tmp_path / "source")
    write_tokenizer(source)
    with pytest.raises(InputError, match=message):
        made(tmp_path, source)


def test_random_codes_have_its_layout(tmp_path):
    settings = QuantizeSettings(
        method="abq",
        bits=2,
        bit_balance=True,
        razor=RazorSettings(**INTEGERS),  # type: ignore[arg-type]
    )
    write_random_folder("scribe-6m:1", tmp_path / "random", settings, force=False, quiet=True)
    nodes = [node for node in read_graph(tmp_path / "random").nodes if node.op_type == SDR_MATMUL]
    assert {node.attributes["bits"] for node in nodes} == {3}


def test_weights_beyond_what_is_stored_are_refused(tmp_path):
    """They are finite, and transformers runs them: what they are calibrated to is not."""
    shutil.copytree(DEMO, tmp_path / "source")
    tensors = load_file(DEMO / "model.safetensors")
    name = next(name for name in tensors if name.endswith("layers.1.mlp.up_proj.weight"))
    huge = tensors[name].astype(np.float32) * np.float32(1e30)
    save_file({**tensors, name: huge}, tmp_path / "source" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="too large"), np.errstate(all="ignore"):
        made(tmp_path / "OUT", tmp_path / "source")
    assert not list(tmp_path.rglob("model.onnx"))
