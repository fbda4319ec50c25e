"""The exported graph in stock onnxruntime against PyTorch with the dequantized weights: prefill, decode, padded batch.

Real models at 3 bits. Tiny configurations of every family: test_families.py.
"""

from __future__ import annotations

import json

import onnx
import pytest

from export.contract.errors import InputError
from export.graph.archs import model_spec
from tests.export.graph.families import compare, dequantized_model
from toolchain.source.checkpoint import SourceModel


def test_logits_of_the_bundled_model(demo_model, demo_checkpoint, demo_folder):
    compare(dequantized_model(demo_model, demo_checkpoint), demo_folder, 1e-3)


def test_logits_of_a_wide_model(wide_model, wide_checkpoint, wide_folder):
    compare(dequantized_model(wide_model, wide_checkpoint), wide_folder, 1e-3)


def test_file_is_what_the_ecosystem_expects(demo_folder):
    path = demo_folder / "model.onnx"
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
    genai = json.loads((demo_folder / "genai_config.json").read_text())
    assert genai["model"]["type"] == "llama" and genai["model"]["eos_token_id"] == 0
    assert genai["model"]["pad_token_id"] == 0 and not genai["search"]["past_present_share_buffer"]
    metadata = {p.key: p.value for p in model.metadata_props}
    assert metadata["athena.method"] == "athena" and metadata["athena.source"] == "athena-demo-2M"


def test_unknown_family_and_bad_fields_say_what_would_be_right(demo_model):
    with pytest.raises(
        InputError, match=r"'rwkv' is not supported; supported are albert, bert.*export/graph/archs/rwkv.py"
    ):
        model_spec({"model_type": "rwkv"})
    config = SourceModel(demo_model).config
    for field, value, message in [
        ("hidden_size", -3, "hidden_size must be a whole number"),
        ("num_key_value_heads", 4, "multiple of num_key_value_heads"),
        ("hidden_act", "sine", "hidden_act 'sine' is not supported"),
    ]:
        with pytest.raises(InputError, match=message):
            model_spec({**config, field: value})
    del config["vocab_size"]
    with pytest.raises(InputError, match="'vocab_size' is missing"):
        model_spec(config)
