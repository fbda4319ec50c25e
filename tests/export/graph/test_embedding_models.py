"""Decoders that sentence-transformers pools (Qwen3-Embedding, EmbeddingGemma): states and vectors of transformers."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import AutoModel

from export.contract.errors import InputError
from export.graph.archs import model_spec
from export.model_folder import write_model_folder
from runtime_py.text.encoder import TextEncoder, is_encoder
from runtime_py.text.generator import TextGenerator
from tests.conftest import _checkpoint, _package
from tests.export.graph.families import FloatCheckpoint, dequantized_model, random_text, tiny_model
from tests.export.graph.test_sentence_modules import by_hand, random_denses, write_modules
from toolchain.source.checkpoint import SourceModel
from toolchain.source.config import resolved_config

TANH, IDENTITY = "torch.nn.modules.activation.Tanh", "torch.nn.modules.linear.Identity"
GEMMA = {"use_bidirectional_attention": True, "sliding_window": 7}
LAYERS = ["sliding_attention", "full_attention"]
# variant: fields of the config, pooling, dense layers' activations
MODELS = {
    "qwen3": ({}, "lasttoken", ()),
    "gemma3_text": (GEMMA, "mean", (IDENTITY, IDENTITY)),
    "gemma3_text causal": ({"layer_types": LAYERS}, "lasttoken", (TANH,)),
    "qwen2": ({"use_sliding_window": True, "sliding_window": 5, "layer_types": LAYERS}, "lasttoken", ()),
    "mistral": ({"sliding_window": None}, "lasttoken", ()),
    "llama": ({}, "cls", ()),
    "smollm3": ({}, "max", ()),
}


def embedding_folder(variant, folder, bare=False):
    """A tiny source folder of the variant with its modules; bare: saved as the model without a head, as published."""
    fields, mode, activations = MODELS[variant]
    tiny_model(variant.split()[0], folder, **fields)
    if bare:
        AutoModel.from_pretrained(folder).save_pretrained(folder)
    denses = random_denses(np.random.default_rng(0), (32, 48, 24)[: len(activations) + 1], activations)
    write_modules(
        folder, ["Transformer", "Pooling", *["Dense"] * len(denses), "Normalize"], {"pooling_mode": mode}, denses
    )
    return mode, denses


def batch(rng, right):
    ids, mask = rng.integers(5, 90, (2, 14)), np.ones((2, 14), np.int64)
    mask[1, slice(9, None) if right else slice(0, 5)] = 0
    return ids, mask


def check(model, folder, mode, denses, tolerance=1e-4):
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    assert [i.name for i in session.get_inputs()] == ["input_ids", "attention_mask"]
    for right in (True, False) if mode != "cls" else (True,):
        ids, mask = batch(np.random.default_rng(0), right)
        states, vectors = session.run(None, {"input_ids": ids, "attention_mask": mask})
        with torch.no_grad():
            given = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
            expected = model(**given, use_cache=False).last_hidden_state.numpy()
        assert np.abs((states - expected)[mask > 0]).max() < tolerance
        np.testing.assert_allclose(vectors, by_hand(mode, expected, mask, denses, True), atol=tolerance)


@pytest.mark.parametrize("variant", MODELS)
def test_float_export_matches_transformers(variant, tmp_path):
    source, folder = tmp_path / "source", tmp_path / "model"
    mode, denses = embedding_folder(variant, source, bare=variant == "qwen3")
    folder.mkdir()
    write_model_folder(FloatCheckpoint(source), folder)
    check(AutoModel.from_pretrained(source, dtype=torch.float32).eval(), folder, mode, denses)
    assert is_encoder(folder) and not (folder / "genai_config.json").exists()
    assert (folder / "2_Dense" / "model.safetensors").exists() == bool(denses)
    with pytest.raises(InputError, match="encoders run by `athena-export embed`"):
        TextGenerator(folder)


@pytest.mark.parametrize("variant", ["qwen3", "gemma3_text"])
def test_quantized_export_runs_alike_everywhere(variant, tmp_path):
    source = tmp_path / "source"
    mode, denses = embedding_folder(variant, source)
    text = random_text(tmp_path / "text.txt")
    options = {"bits": 4, "sequence_length": 32, "embedding_bits": 8}
    checkpoint = _checkpoint(source, str(text), None, tmp_path / "quantized", **options)
    folder = _package(checkpoint, tmp_path / "model")
    check(dequantized_model(source, checkpoint), folder, mode, denses)
    exact, engine = TextEncoder(folder, "float32"), TextEncoder(folder)
    assert engine.interpreted == "" and engine.width == (24 if denses else 32)
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    for length in (1, 3, 14, 40):
        ids = np.random.default_rng(length).integers(5, 90, length)
        feeds = {"input_ids": ids[None], "attention_mask": np.ones((1, length), np.int64)}
        states, vectors = session.run(None, feeds)
        np.testing.assert_allclose(exact.states(ids.tolist()), states[0], atol=1e-4)
        np.testing.assert_allclose(exact.embed_ids(ids.tolist()), vectors[0], atol=1e-4)
        error = engine.states(ids.tolist()) - states[0]
        assert np.sqrt(np.mean(error**2)) < 0.05 * np.sqrt(np.mean(states**2))


def test_without_its_modules_it_generates_text(tmp_path):
    tiny_model("qwen3", tmp_path)
    assert model_spec(SourceModel(tmp_path).config).causal
    write_modules(tmp_path, ["Transformer", "Pooling"], {"pooling_mode": "lasttoken"})
    spec = model_spec(SourceModel(tmp_path).config)
    assert not spec.causal and spec.looks_back_only and spec.head is None and spec.embedding == "embed_tokens"


@pytest.mark.parametrize(
    ("variant", "fields", "message"),
    [
        ("gpt2", {}, "gpt2 as an embedding model is not supported"),
        ("opt", {}, "opt as an embedding model is not supported"),
        ("olmoe", {}, "olmoe as an embedding model is not supported"),
        ("gemma2", {}, "gemma2 as an embedding model is not supported"),
        ("ministral3", {}, "ministral3 as an embedding model is not supported"),
    ],
)
def test_what_is_refused_as_an_embedding_model(variant, fields, message, tmp_path):
    tiny_model(variant, tmp_path, **fields)
    write_modules(tmp_path, ["Transformer", "Pooling"], {"pooling_mode": "mean"})
    with pytest.raises(InputError, match=message):
        model_spec(SourceModel(tmp_path).config)


def test_a_bidirectional_gemma_generates_nothing(tmp_path):
    raw = json.loads(json.dumps({"model_type": "gemma3_text", "use_bidirectional_attention": True}))
    with pytest.raises(InputError, match="use_bidirectional_attention True is not supported"):
        model_spec(resolved_config(raw, tmp_path))
