"""Encoder families on tiny random configurations, and the trained MiniLM: transformers, onnxruntime, our runtime."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import AutoModel

from export.archs import model_spec, supported_model_types
from export.errors import InputError
from export.folder import write_model_folder
from export.pooling import Pooling, read_pooling
from tests.conftest import _checkpoint, _package
from tests.export.families import TINY, TINY_ENCODERS, FloatCheckpoint, dequantized_model, random_text, tiny_model


def write_pooling(folder, mode, normalize):
    modules = ["Transformer", "Pooling"] + ["Normalize"] * normalize
    (folder / "modules.json").write_text(
        json.dumps([{"idx": i, "name": str(i), "path": "", "type": f"s.{m}"} for i, m in enumerate(modules)])
    )
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({mode: True, "pooling_mode_weightedmean_tokens": False})
    )


def pooled(states, mask, mode, normalize):
    """Reference of the pooling in float64: one text after another."""
    rows = []
    for state, keep in zip(states.astype(np.float64), mask.astype(bool)):
        chosen = {"cls": state[0], "mean": state[keep].mean(0), "max": state[keep].max(0)}[mode]
        rows.append(chosen / np.linalg.norm(chosen) if normalize else chosen)
    return np.stack(rows)


def compare(model, folder, tolerance, mode="mean", normalize=False):
    """A batch of a whole and a padded text."""
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    rng = np.random.default_rng(0)
    ids, mask = rng.integers(5, 90, (2, 14)), np.ones((2, 14), np.int64)
    mask[1, 9:] = 0
    ids[1, 9:] = model.config.pad_token_id
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.arange(14)[None].repeat(2, 0) // 6 % 2}
    names = {i.name for i in session.get_inputs()}
    feeds = {name: value for name, value in feeds.items() if name in names}
    states, vectors = session.run(["last_hidden_state", "sentence_embedding"], feeds)
    with torch.no_grad():
        expected = model(**{name: torch.from_numpy(value) for name, value in feeds.items()}).last_hidden_state.numpy()
    assert np.abs((states - expected)[mask > 0]).max() < tolerance
    np.testing.assert_allclose(vectors, pooled(states, mask, mode, normalize), atol=1e-5)
    return feeds, states, vectors


def test_every_family_has_a_tiny_configuration():
    families = {variant.split()[0] for variant in (*TINY, *TINY_ENCODERS)}
    assert families == set(supported_model_types())


@pytest.mark.parametrize("variant", TINY_ENCODERS)
def test_float_export_matches_transformers(variant, tmp_path):
    source, folder = tmp_path / "source", tmp_path / "model"
    tiny_model(variant, source)
    folder.mkdir()
    write_model_folder(FloatCheckpoint(source), folder)
    compare(AutoModel.from_pretrained(source, dtype=torch.float32).eval(), folder, 1e-4)
    onnx.checker.check_model(str(folder / "model.onnx"), full_check=True)
    assert not (folder / "genai_config.json").exists()  # it generates nothing


@pytest.mark.parametrize(("mode", "name"), [("cls", "cls_token"), ("mean", "mean_tokens"), ("max", "max_tokens")])
@pytest.mark.parametrize("variant", TINY_ENCODERS)
def test_quantized_export_matches_the_dequantized_model(variant, mode, name, tmp_path):
    source = tmp_path / "source"
    tiny_model(variant, source)
    write_pooling(source, f"pooling_mode_{name}", normalize=mode == "mean")
    text = random_text(tmp_path / "text.txt")
    options = {"bits": 4, "sequence_length": 32, "embedding_bits": 16 if mode == "max" else 8}
    checkpoint = _checkpoint(source, str(text), None, tmp_path / "quantized", **options)
    folder = _package(checkpoint, tmp_path / "model")
    compare(dequantized_model(source, checkpoint), folder, 1e-4, mode, mode == "mean")
    assert (folder / "1_Pooling" / "config.json").exists()


def test_shared_blocks_are_stored_and_exported_once(tmp_path):
    tiny_model("albert", tmp_path / "source")
    checkpoint = _checkpoint(
        tmp_path / "source", str(random_text(tmp_path / "text.txt")), None, tmp_path / "quantized", sequence_length=32
    )
    names = [name for name in checkpoint.records if name.endswith("ffn")]
    assert names == ["encoder.albert_layer_groups.0.albert_layers.0.ffn"]
    model = onnx.load(str(_package(checkpoint, tmp_path / "model") / "model.onnx"), load_external_data=False)
    uses = [n for n in model.graph.node if any(i.endswith("ffn.codes") for i in n.input)]
    assert len(uses) == 4 and sum(t.name.endswith("ffn.codes") for t in model.graph.initializer) == 1


def test_what_cannot_be_pooled_or_quantized_is_said(tmp_path):
    assert read_pooling(tmp_path) == Pooling("mean", False)
    write_pooling(tmp_path, "pooling_mode_lasttoken", False)
    with pytest.raises(InputError, match="pooling_mode_lasttoken is not supported; pooling_mode_cls_token"):
        read_pooling(tmp_path)
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode": "mean"}')
    assert read_pooling(tmp_path) == Pooling("mean", False)
    (tmp_path / "modules.json").write_text('[{"type": "s.Transformer"}, {"type": "s.Dense"}]')
    with pytest.raises(InputError, match="modules Transformer, Dense are not supported"):
        read_pooling(tmp_path)
    (tmp_path / "modules.json").write_text("{")
    with pytest.raises(InputError, match="not a list of sentence-transformers modules"):
        read_pooling(tmp_path)
    tiny_model("bert", tmp_path / "source")
    text = random_text(tmp_path / "text.txt")
    for settings, message in (({"guided": True}, "--guided"), ({"bits": 3.5}, "a fractional --bits")):
        with pytest.raises(InputError, match=f"{message} needs a model that predicts"):
            _checkpoint(tmp_path / "source", str(text), None, tmp_path / "q", sequence_length=32, **settings)
    with pytest.raises(InputError, match="is_decoder True is not supported for bert"):
        model_spec({"model_type": "bert", "is_decoder": True})
