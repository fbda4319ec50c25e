"""config.json through the family's own class: hostile ones, old ones, and what is kept of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.contract.errors import InputError
from export.graph.archs import model_spec
from toolchain.source.config import resolved_config

WHERE = Path("folder") / "config.json"


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 1e30},
        {"num_hidden_layers": 2.0},
        {"num_hidden_layers": "2"},
        {"per_layer_config": {"0": {"num_key_value_heads": 1}}},
        {"__class__": "x"},
        {"__dict__": {}},
        {"to_dict": 3},
        {"standardize_rope_params": 3},
        {"rope_parameters": 7},
        {"rope_scaling": "yarn"},
        {"rope_scaling": {"rope_type": "yarn"}},
        {"hidden_size": None},
        {"num_attention_heads": 0},
    ],
    ids=str,
)
def test_a_bad_config_is_one_line_that_names_the_file(change):
    with pytest.raises(InputError, match=r"folder.config\.json: ") as error:
        resolved_config({"model_type": "llama", **change}, WHERE)
    assert "\n" not in str(error.value) and len(str(error.value)) < 450


@pytest.mark.parametrize(
    "ignored",
    [
        {"auto_map": {"AutoConfig": "evil.Config"}},
        {"attn_implementation": "hub/kernel"},
        {"_attn_implementation": "flash_attention_9"},
        {"quantization_config": {"quant_method": "gptq"}},
        {"torch_dtype": "save"},
        {"num_labels": 10**12},
        {"output_attentions": True},
    ],
    ids=str,
)
def test_code_backends_and_labels_are_not_for_the_class(ignored):
    """They stay in the dictionary as they were and change nothing else."""
    plain = resolved_config({"model_type": "llama"}, WHERE)
    assert resolved_config({"model_type": "llama", **ignored}, WHERE) == {**plain, **ignored}


def test_the_key_that_transformers_takes_for_another_family():
    """A mistral with layer_types is AutoConfig's ministral: windows by layer."""
    sizes = {"model_type": "mistral", "num_hidden_layers": 2, "head_dim": 128, "sliding_window": 5}
    assert model_spec(resolved_config(sizes, WHERE)).sliding_window == (5, 5)
    typed = {**sizes, "layer_types": ["full_attention", "sliding_attention"]}
    assert model_spec(resolved_config(typed, WHERE)).sliding_window == (None, 5)


def test_other_families_are_left_alone():
    raw = {"model_type": "rwkv", "num_hidden_layers": 10**9}
    assert resolved_config(raw, WHERE) is raw
