"""The exported graph in stock onnxruntime against PyTorch with the dequantized weights: prefill, decode, padded batch.

Real models at 3 bits, and a tiny random configuration of every family, quantized and with low-rank terms.
"""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from export.archs import model_spec, supported_model_types
from export.checkpoint import QuantizedCheckpoint
from export.errors import InputError
from runtime_py.load import open_model
from tests.runtime_py.test_session import OnnxRuntime
from toolchain.blocks import set_weight
from toolchain.quantize.result import QuantizedMatrix

TINY = {
    "llama": {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
              "high_freq_factor": 4.0, "original_max_position_embeddings": 32}, "tie_word_embeddings": False},
    "mistral": {"sliding_window": 6, "head_dim": 8},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 8, "tie_word_embeddings": True},
    "olmo2": {"tie_word_embeddings": False},
    "smollm3": {"num_hidden_layers": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    "granite": {"embedding_multiplier": 3.0, "residual_multiplier": 0.4, "attention_multiplier": 0.2,
                "logits_scaling": 4.0, "tie_word_embeddings": True},
    "gpt2": {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 64, "vocab_size": 96},
}  # fmt: skip
COMMON = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
          "num_key_value_heads": 2, "vocab_size": 96, "max_position_embeddings": 64}  # fmt: skip


def dequantized_model(source, checkpoint: QuantizedCheckpoint):
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="eager").eval()
    for name, record in checkpoint.records.items():
        if record.scheme == "codebook":

            def part(suffix, name=name):
                try:
                    return checkpoint.tensor(name, suffix)
                except InputError:
                    return None

            set_weight(model.get_submodule(name), QuantizedMatrix.restored(record, part).dequantized())
        elif record.scheme == "float16":
            model.get_submodule(name).weight.data = torch.from_numpy(checkpoint.tensor(name, ".weight")).float()
    return model


def compare(source, checkpoint, folder, tolerance):
    model, ours = dequantized_model(source, checkpoint), OnnxRuntime(folder)
    vocabulary = model.config.vocab_size
    rng = np.random.default_rng(0)
    ids = rng.integers(0, vocabulary, (1, 20))
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)).logits.numpy()
    prefill, past = ours.run(ids[:, :19], np.ones((1, 19), np.int64), np.arange(19)[None], ours.empty())
    decode, _ = ours.run(ids[:, 19:], np.ones((1, 20), np.int64), np.array([[19]]), past)
    assert np.abs(np.concatenate([prefill, decode], 1) - expected).max() < tolerance
    batch, mask = rng.integers(0, vocabulary, (2, 10)), np.ones((2, 10), np.int64)
    mask[0, :4] = 0
    positions = np.maximum(np.cumsum(mask, 1) - 1, 0)
    with torch.no_grad():
        given = (torch.from_numpy(array) for array in (batch, mask, positions))
        expected = model(input_ids=next(given), attention_mask=next(given), position_ids=next(given)).logits.numpy()
    padded, cache = ours.run(batch, mask, positions, ours.empty(2))
    assert np.abs((padded - expected)[mask > 0]).max() < tolerance
    assert all(np.isfinite(c).all() for c in cache)


def test_stories_logits(stories, stories_checkpoint, stories_folder):
    compare(stories, stories_checkpoint, stories_folder, 1e-3)


def test_scribe_logits(scribe_checkpoint, scribe_folder):
    from tests.conftest import shared

    compare(shared("models/scribe-6M"), scribe_checkpoint, scribe_folder, 1e-3)


def tiny_model(model_type, folder, stories):
    """A random tiny model with non-trivial norms and biases, saved with a real tokenizer cut to its vocabulary."""
    config = AutoConfig.for_model(model_type, **{**({} if model_type == "gpt2" else COMMON), **TINY[model_type]})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(
                torch.randn_like(p) * (0.2 if p.ndim > 1 else 0.3) + (1.0 if "norm" in name or "ln_" in name else 0)
            )
    model.save_pretrained(folder)
    tokenizer = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
                 "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False},
                 "post_processor": None, "decoder": {"type": "Fuse"},
                 "model": {"type": "WordLevel", "vocab": {chr(33 + i): i for i in range(90)} | {"<unk>": 90},
                           "unk_token": "<unk>"}}  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("model_type", supported_model_types())
def test_every_family_on_a_tiny_random_configuration(model_type, rank, tmp_path, stories):
    from tests.conftest import _checkpoint, _package

    source = tmp_path / "source"
    tiny_model(model_type, source, stories)
    text = tmp_path / "text.txt"
    text.write_text("".join(chr(33 + i) for i in np.random.default_rng(0).integers(0, 90, 4000)))
    # rank 0 keeps the embedding in float16 too, so that dense matrices are covered
    options = {"rank": rank, "bits": 4, "sequence_length": 32, "embedding_bits": 8 if rank else 16}
    checkpoint = _checkpoint(source, str(text), None, tmp_path / "quantized", **options)
    folder = _package(checkpoint, tmp_path / "model")
    compare(source, checkpoint, folder, 1e-3)
    ids = np.random.default_rng(1).integers(0, 96, 12)
    from runtime_py.session import Session

    session, reference = Session(folder), OnnxRuntime(folder)
    expected, _ = reference.run(ids[None], np.ones((1, 12), np.int64), np.arange(12)[None], reference.empty())
    np.testing.assert_allclose(session.forward(session.new_state(), ids), expected[0], atol=1e-4)
    engine, why = open_model(folder)
    assert why == ""  # planned, not interpreted
    state = engine.new_state()
    pieces = [engine.forward(state, ids[a:b]) for a, b in ((0, 9), (9, 10), (10, 12))]
    # int8 activations: each of the 8 to 29 products adds about 0.5 % of its own size
    error = np.concatenate(pieces) - expected[0]
    assert np.sqrt(np.mean(error**2)) < 0.05 * np.sqrt(np.mean(expected[0] ** 2))


def test_file_is_what_the_ecosystem_expects(stories_folder):
    path = stories_folder / "model.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(str(path), load_external_data=False)
    assert model.ir_version == 11
    assert {o.domain: o.version for o in model.opset_import} == {"": 23, "ai.athena": 1}
    inputs = [i.name for i in model.graph.input]
    assert inputs[:5] == [
        "input_ids",
        "attention_mask",
        "position_ids",
        "past_key_values.0.key",
        "past_key_values.0.value",
    ]
    outputs = [o.name for o in model.graph.output]
    assert outputs[:3] == ["logits", "present.0.key", "present.0.value"]
    assert "/model/layers.0/self_attn/q_proj" in {n.name for n in model.graph.node}
    genai = json.loads((stories_folder / "genai_config.json").read_text())
    assert genai["model"]["type"] == "llama" and genai["model"]["eos_token_id"] == [1, 2]
    assert genai["model"]["pad_token_id"] == 1 and not genai["search"]["past_present_share_buffer"]
    metadata = {p.key: p.value for p in model.metadata_props}
    assert metadata["athena.method"] == "athena" and metadata["athena.source"] == "stories260K"


def test_unknown_family_and_bad_fields_say_what_would_be_right(stories):
    with pytest.raises(
        InputError, match=r"'rwkv' is not supported; supported are gpt2, granite, llama.*export/archs/rwkv.py"
    ):
        model_spec({"model_type": "rwkv"})
    config = json.loads((stories / "config.json").read_text())
    for field, value, message in [
        ("hidden_size", -3, "hidden_size must be a whole number"),
        ("num_key_value_heads", 3, "multiple of num_key_value_heads"),
        ("hidden_act", "sine", "hidden_act 'sine' is not supported"),
        ("rope_parameters", {"rope_type": "yarn"}, "rope_type 'yarn' is not supported"),
    ]:
        with pytest.raises(InputError, match=message):
            model_spec({**config, field: value})
    del config["vocab_size"]
    with pytest.raises(InputError, match="'vocab_size' is missing"):
        model_spec(config)
