"""The contract of every family: no default of ours where its class in transformers has one (config_sweep.py)."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest

from export.graph.archs import supported_model_types
from tests.export.graph.config_sweep import Evaluator, cells, default_config
from toolchain.source.config import resolved_config

FAST = ("bert", "gemma3_text", "gpt2", "llama")
ACTIVATIONS = (
    "hidden_act", "hidden_activation", "activation_function", "activation", "mlp_hidden_act", "mamba_hidden_act"
)  # fmt: skip
ODD = "rotary positions need an even part of head_dim"
# What transformers runs and we refuse: (family or *, key) and what the message says of it. Whatever is not here, and is
# neither an activation that the graph builder lacks nor a size or factor of zero or less, is a difference.
UNSUPPORTED = {
    ("*", "is_decoder"): "is_decoder True is not supported",
    ("*", "add_cross_attention"): "add_cross_attention True is not supported",
    ("*", "position_embedding_type"): "position_embedding_type 'relative_key' is not supported",
    ("*", "use_bidirectional_attention"): "use_bidirectional_attention True is not supported",
    ("*", "qk_layernorm"): "qk_layernorm True is not supported",
    ("*", "num_attention_heads"): ODD,  # sizes that leave a pair of channels half rotated
    ("*", "time_step_limit"): "is not supported",  # the smaller limit behind the larger
    ("nemotron_h", "layers_block_type"): "must list the layers",
    ("nemotron_h", "moe_latent_size"): "moe_latent_size, n_group and topk_group are not supported",
    ("nemotron_h", "n_group"): "moe_latent_size, n_group and topk_group are not supported",
    ("nemotron_h", "topk_group"): "moe_latent_size, n_group and topk_group are not supported",
    ("mamba2", "rescale_prenorm_residual"): "rescale_prenorm_residual True is not supported",
    ("gpt_neox", "hidden_size"): ODD,
    ("stablelm", "hidden_size"): ODD,
    ("gpt_neox", "head_dim"): "head_dim must be 8",
    ("stablelm", "head_dim"): "head_dim must be a whole number",  # null
    ("starcoder2", "head_dim"): "head_dim must be a whole number",
    ("albert", "inner_group_num"): "inner_group_num must be 1",
    ("gpt2", "scale_attn_by_inverse_layer_idx"): "scale_attn_by_inverse_layer_idx True is not supported",
    ("olmoe", "clip_qkv"): "is not supported for olmoe",
    ("opt", "_remove_final_layer_norm"): "_remove_final_layer_norm True is not supported",
    ("opt", "do_layer_norm_before"): "do_layer_norm_before False is not supported",
    ("opt", "layer_norm_elementwise_affine"): "layer_norm_elementwise_affine False is not supported",
    ("opt", "hidden_size"): "word_embed_proj_dim must be hidden_size",
    ("opt", "word_embed_proj_dim"): "word_embed_proj_dim must be hidden_size",
}


def allowed(family: str, key: str, refusal: str) -> bool:
    if key in ACTIVATIONS:
        return f"{key} '" in refusal and "is not supported; supported are silu" in refusal
    known = UNSUPPORTED.get((family, key)) or UNSUPPORTED.get(("*", key))
    too_small = f"{key} must be a (whole number from 1 to 16777216|positive number), not (0|0.0|-1.0)$"
    return re.search(too_small, refusal) is not None or (known is not None and known in refusal)


@pytest.mark.parametrize(
    "family", [pytest.param(f, marks=() if f in FAST else pytest.mark.long) for f in supported_model_types()]
)
def test_every_key_means_what_it_means_to_transformers(family, tmp_path, capsys):
    evaluator, wrong = Evaluator(family, tmp_path), []
    tried = cells(family)
    for cell in tried:
        different, refusal = evaluator.difference(cell)
        if different or (refusal and not allowed(family, cell.key, refusal)):
            wrong.append(f"{cell.key} {cell.change}: {different or refusal}")
    with capsys.disabled():
        print(f"\n{family}: {len(tried)} cells, {len(wrong)} differences", end=" ")
    assert not wrong, "\n".join(wrong)
    assert len(tried) > 100


@pytest.mark.parametrize("family", supported_model_types())
def test_resolving_twice_changes_nothing(family):
    raw = {"model_type": family}
    before = copy.deepcopy(raw)
    once = resolved_config(raw, Path("config.json"))
    assert raw == before
    assert resolved_config(once, Path("config.json")) == once
    full = default_config(family) | {"rope_theta": 5e5, "unknown_key": [1]}
    resolved = resolved_config(full, Path("config.json"))
    assert resolved["unknown_key"] == [1] and resolved["rope_theta"] == 5e5
    assert resolved_config(resolved, Path("config.json")) == resolved
