"""The vocabulary head as transformers settles it: every mixture of stored matrices and settings, in every family."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from export.contract.errors import InputError
from export.lowering.folder import Lowering, write_lowered_folder
from export.lowering.matmul_nbits import NBits
from hw_model.estimate import estimate
from runtime_py.load import open_model as open_engine
from runtime_py.reference.session import Session
from tests.conftest import _package
from tests.export.graph.config_sweep import TOLERANCE, Evaluator
from tests.export.graph.families import (
    TINY,
    check_folded_export,
    compare,
    dequantized_model,
    random_text,
    tiny_model,
    write_tokenizer,
)
from tests.runtime_py.reference.test_session import OnnxRuntime
from toolchain.pipeline.run import CalibrationChoice, quantize_model
from toolchain.settings.quantize import QuantizeSettings
from toolchain.source.heads import open_model

FAMILIES = [name for name in TINY if " " not in name]
SAVED_HEAD = {"gpt_neox": "embed_out"}  # others: lm_head
NEVER_TIED = ("nemotron_h",)  # whatever config.json says: the class ties nothing
SAVED_EMBEDDING = {"nemotron_h": "backbone.embeddings"}  # others: as the class calls it


@pytest.fixture(scope="module", params=FAMILIES)
def evaluator(request, tmp_path_factory):
    """A family's tiny model with embedding and head stored apart."""
    folder = tmp_path_factory.mktemp(request.param)
    made = Evaluator(request.param, folder, tie_word_embeddings=False)
    made.spec = open_model(folder / "source")[1]
    return made


def variant(evaluator, folder, tied, stored):
    """The folder with these head and embedding tensors (None: not stored) and this tie_word_embeddings."""
    source = evaluator.folder / "source"
    config = json.loads((source / "config.json").read_text()) | {"tie_word_embeddings": tied}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(source / "model.safetensors")
    for name, value in stored.items():
        tensors.pop(name, None)
        if value is not None:
            tensors[name] = value.clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def names(evaluator):
    embedding = SAVED_EMBEDDING.get(evaluator.family, evaluator.spec.embedding)
    return f"{embedding}.weight", f"{SAVED_HEAD.get(evaluator.family, 'lm_head')}.weight"


def random_matrix(evaluator, seed):
    spec = evaluator.spec
    return torch.randn(spec.vocab_size, spec.hidden_size, generator=torch.Generator().manual_seed(seed)) * 0.2


CASES = {
    "tied, both stored and equal": (True, "a", "a", True),
    "tied, both stored and different": (True, "a", "b", False),
    "tied, embedding only": (True, "a", None, True),
    "tied, head only": (True, None, "b", True),
    "tied, neither": (True, None, None, None),
    "untied, both stored": (False, "a", "b", False),
    "untied, both stored and equal": (False, "a", "a", False),
    "untied, embedding only": (False, "a", None, None),
    "untied, head only": (False, None, "b", None),
    "tied, one row too many": (True, "long", None, None),
    "untied, head with a row too many": (False, "a", "long", None),
}


@pytest.mark.parametrize("case", CASES)
def test_heads_are_those_of_transformers(case, evaluator, tmp_path):
    """Same refusal or the same logits, and the config that goes on says whether the head is tied in truth."""
    tied, embedding, head, expected = CASES[case]
    if tied and evaluator.family in NEVER_TIED:
        expected = False if embedding and head else None
    values = {"a": random_matrix(evaluator, 1), "b": random_matrix(evaluator, 2), None: None}
    values["long"] = torch.cat([values["a"], values["a"][:1]])
    stored = dict(zip(names(evaluator), (values[embedding], values[head])))
    folder = variant(evaluator, tmp_path, tied, stored)
    theirs, ours = evaluator.transformers(folder), evaluator.exported(folder)
    if expected is None:
        assert theirs.values is None and ours.values is None, (theirs.refusal, ours.refusal)
        return
    assert np.abs(theirs.values - ours.values).max() <= TOLERANCE
    assert open_model(folder)[0].config["tie_word_embeddings"] is expected


def test_other_names_of_the_head(evaluator, tmp_path):
    """`lm_head` in every family, behind the model's prefix too; another family's `embed_out` is no head."""
    _, own = names(evaluator)
    head = random_matrix(evaluator, 2)
    prefix = evaluator.spec.embedding.split(".")[0] + "."
    for name in ("lm_head.weight", f"{prefix}lm_head.weight", "embed_out.weight"):
        folder = variant(evaluator, tmp_path, False, {own: None, name: head})
        theirs, ours = evaluator.transformers(folder), evaluator.exported(folder)
        assert (theirs.values is None) == (ours.values is None), (name, theirs.refusal, ours.refusal)
        if theirs.values is not None:
            assert np.abs(theirs.values - ours.values).max() <= TOLERANCE


@pytest.mark.parametrize("tied", [True, False])
def test_a_bias_counts_where_the_class_makes_one(tied, evaluator, tmp_path):
    """phi's head has a bias, tied or not; a bias that another family's checkpoint stores is ignored."""
    bias, tied = torch.linspace(-2, 2, evaluator.spec.vocab_size), tied and evaluator.family not in NEVER_TIED
    folder = variant(evaluator, tmp_path, tied, {"lm_head.bias": bias} | ({names(evaluator)[1]: None} if tied else {}))
    theirs, ours = evaluator.transformers(folder), evaluator.exported(folder)
    assert np.abs(theirs.values - ours.values).max() <= TOLERANCE
    if evaluator.family == "phi":
        folder = variant(evaluator, tmp_path, tied, {"lm_head.bias": None})
        assert evaluator.transformers(folder).values is None
        assert "lm_head.bias" in evaluator.exported(folder).refusal


def test_tensors_without_a_prefix(evaluator, tmp_path):
    """A checkpoint of the bare model: tied, its embedding is the head."""
    prefix = evaluator.spec.embedding.split(".")[0] + "."
    tensors = load_file(evaluator.folder / "source" / "model.safetensors")
    renamed = dict.fromkeys(tensors)
    renamed |= {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix) or n == "lm_head.bias"}
    folder = variant(evaluator, tmp_path, True, renamed)
    theirs, ours = evaluator.transformers(folder), evaluator.exported(folder)
    if evaluator.family in NEVER_TIED:
        assert theirs.values is None and ours.values is None
        return
    assert np.abs(theirs.values - ours.values).max() <= TOLERANCE


def test_the_refusal_names_the_field(tmp_path):
    evaluator = Evaluator("llama", tmp_path, tie_word_embeddings=False)
    evaluator.spec = open_model(tmp_path / "source")[1]
    folder = tmp_path / "variant"
    folder.mkdir()
    variant(evaluator, folder, False, {"lm_head.weight": None})
    with pytest.raises(InputError, match="no tensor lm_head.weight, and tie_word_embeddings in config.json is false"):
        open_model(folder)


def quantized(source, tmp_path, **options):
    settings = QuantizeSettings(method="rtn", bits=8, sequences=2, sequence_length=32, **options)
    choice = CalibrationChoice(str(random_text(tmp_path / "text.txt")))
    return quantize_model(str(source), tmp_path / "quantized", settings, choice, quiet=True)


def check_runners(source, checkpoint, tmp_path):
    """The export is the checkpoint's model in onnxruntime, interpreter and engine, and near the source."""
    folder = _package(checkpoint, tmp_path / "model")
    compare(dequantized_model(source, checkpoint), folder, 1e-4)
    ids = np.arange(3, 23)
    original = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    with torch.no_grad():
        expected = original(torch.from_numpy(ids[None])).logits.numpy()[0]
    session = Session(folder)
    assert np.abs(session.forward(session.new_state(), ids) - expected).max() < 0.05 * np.abs(expected).max()
    engine, why = open_engine(folder)
    assert why == ""
    assert np.abs(engine.forward(engine.new_state(), ids) - expected).max() < 0.1 * np.abs(expected).max()
    return folder


@pytest.mark.parametrize("options", [{}, {"embedding_bits": 16}, {"equalize": True}], ids=str)
def test_a_tied_head_keeps_its_bias(options, tmp_path):
    """Through quantization, graph, runners, lowering and cost."""
    tiny_model("phi tied", tmp_path / "source")
    checkpoint = quantized(tmp_path / "source", tmp_path, **options)
    assert checkpoint.has("lm_head.bias") and not checkpoint.has("lm_head")
    if "equalize" in options:
        folder = _package(checkpoint, tmp_path / "model")
        check_folded_export(tmp_path / "source", checkpoint, folder)
    else:
        folder = check_runners(tmp_path / "source", checkpoint, tmp_path)
    assert estimate(folder, ["rpi5"], "decode", 32)
    lowered = tmp_path / "lowered"
    lowered.mkdir()
    write_lowered_folder(folder, lowered, Lowering("test", ("matmul_nbits",), NBits(accuracy_level=1)))
    ids = np.arange(3, 15)[None]
    logits = []
    for runner in (OnnxRuntime(folder), OnnxRuntime(lowered)):
        logits.append(runner.run(ids, np.ones_like(ids), np.arange(12)[None], runner.empty())[0])
    np.testing.assert_allclose(logits[1], logits[0], atol=0.05)


def test_a_tied_head_is_tuned_with_its_bias(tmp_path):
    tiny_model("phi tied", tmp_path / "source")
    settings = QuantizeSettings(method="rtn", bits=4, sequences=2, sequence_length=32, tune_steps=2, tune_length=16)
    choice = CalibrationChoice(str(random_text(tmp_path / "text.txt")))
    checkpoint = quantize_model(str(tmp_path / "source"), tmp_path / "quantized", settings, choice, quiet=True)
    folder = _package(checkpoint, tmp_path / "model")
    check_folded_export(tmp_path / "source", checkpoint, folder)


def test_two_matrices_go_on_as_two(tmp_path):
    """tie_word_embeddings with a head that differs: quantized apart, and the config says so."""
    evaluator = Evaluator("llama", tmp_path, tie_word_embeddings=False)
    evaluator.spec = open_model(tmp_path / "source")[1]
    source = tmp_path / "variant"
    source.mkdir()
    variant(evaluator, source, True, {"lm_head.weight": random_matrix(evaluator, 2)})
    write_tokenizer(source)
    checkpoint = quantized(source, tmp_path)
    assert checkpoint.has("lm_head") and checkpoint.config["tie_word_embeddings"] is False
    folder = check_runners(source, checkpoint, tmp_path)
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is False


def test_a_head_stored_alone_is_the_embedding(tmp_path):
    evaluator = Evaluator("llama", tmp_path, tie_word_embeddings=False)
    evaluator.spec = open_model(tmp_path / "source")[1]
    source = tmp_path / "variant"
    source.mkdir()
    variant(evaluator, source, True, {"model.embed_tokens.weight": None})
    write_tokenizer(source)
    checkpoint = quantized(source, tmp_path, equalize=True)
    assert not checkpoint.has("lm_head") and checkpoint.config["tie_word_embeddings"] is True
    folder = _package(checkpoint, tmp_path / "model")
    check_folded_export(source, checkpoint, folder)
