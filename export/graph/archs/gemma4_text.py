"""Gemma 4 (text): embeddings for each layer, heads of two sizes, layers over the keys and values of earlier ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from export.contract.errors import InputError
from export.graph.archs import llama
from export.graph.archs._config import flag, optional_number, positive, refuse, windows
from export.graph.archs._experts import picking
from export.graph.archs._layers import earlier_caches, sizes_of_layers, whole_number
from export.graph.archs._rope import exported_context, of_layer_type, rope
from export.graph.parts import DenseBeside, PerLayerEmbedding, PerLayerInput
from export.graph.spec import BlockNames, ModelSpec

FULL, SLIDING = "full_attention", "sliding_attention"


def spec(config: dict[str, Any]) -> ModelSpec:
    refuse(config, {"use_bidirectional_attention": "all"})
    everywhere = of_layer_type(config, FULL)
    base = llama.spec({**everywhere, "head_dim": _head_dim(config, FULL)}, hidden_act="hidden_activation")
    base = replace(
        base,
        block=shaped_block(base.block, per_layer_embedding(config)),
        norm_each_head=True,
        embedding_scale=base.hidden_size**0.5,
        attention_scale=1.0,
        logit_softcap=optional_number(config, "final_logit_softcapping"),
        sliding_window=windows(config, base.layers),
        per_layer=per_layer_embedding(config),
    )
    if base.sliding_window:
        near = of_layer_type(config, SLIDING)
        context = min(base.context_length, exported_context(near))
        base = replace(base, context_length=context, local_rope=rope(near, _head_dim(config, SLIDING)))
    if base.per_layer is None and config["num_kv_shared_layers"]:
        raise InputError("config.json: num_kv_shared_layers without hidden_size_per_layer_input is not supported")
    caches = earlier_caches(config, whole_number(config, "num_kv_shared_layers"))
    kinds = tuple(_kind(config, base, layer, caches) for layer in range(base.layers))
    return replace(base, block=kinds[0], block_kinds=kinds, cache_of_layer=caches)


def shaped_block(base: BlockNames, table: PerLayerEmbedding | None) -> BlockNames:
    """A block with all norms and, where the model has them, embeddings for each layer."""
    own = PerLayerInput("per_layer_input_gate", "per_layer_projection", "post_per_layer_input_norm")
    return replace(
        base,
        per_layer=None if table is None else own,
        query_norm="self_attn.q_norm",
        key_norm="self_attn.k_norm",
        value_norm=True,
        attention_post_norm="post_attention_layernorm",
        mlp_norm="pre_feedforward_layernorm",
        mlp_post_norm="post_feedforward_layernorm",
        factor="layer_scalar",
    )


def per_layer_embedding(config: dict[str, Any]) -> PerLayerEmbedding | None:
    """None where hidden_size_per_layer_input is 0 or null."""
    if not config["hidden_size_per_layer_input"]:
        return None
    return PerLayerEmbedding(
        embedding="model.embed_tokens_per_layer",
        projection="model.per_layer_model_projection",
        norm="model.per_layer_projection_norm",
        rows=positive(config, "vocab_size_per_layer_input"),
        width=positive(config, "hidden_size_per_layer_input"),
    )


def _kind(config: dict[str, Any], base: ModelSpec, layer: int, caches: tuple[int, ...]) -> BlockNames:
    names, (kv_heads, head_dim) = base.block, sizes_of_layers(config)[layer]
    if base.heads % kv_heads:
        raise InputError(
            f"config.json: num_attention_heads ({base.heads}) must be a multiple of the {kv_heads} key-value heads"
        )
    names = replace(names, kv_heads=kv_heads, head_dim=head_dim)
    if flag(config, "enable_moe_block"):
        names = _with_experts(names, config)
    if flag(config, "attention_k_eq_v") and config["layer_types"][layer] == FULL:
        names = replace(names, value=None, values_are_keys=True)
    if not caches or caches[layer] == layer:
        return names
    width = base.feed_forward * (2 if flag(config, "use_double_wide_mlp") else 1)
    return replace(without_cache(names), feed_forward=width)


def without_cache(names: BlockNames) -> BlockNames:
    """A block that sees keys and values of an earlier one."""
    without: dict[str, Any] = dict.fromkeys(("key", "value", "key_norm"))
    return replace(names, **without, value_norm=False, values_are_keys=False)


def _with_experts(names: BlockNames, config: dict[str, Any]) -> BlockNames:
    assert names.gate and names.up and names.down
    beside = DenseBeside(
        gate=names.gate,
        up=names.up,
        down=names.down,
        norm="post_feedforward_layernorm_1",
        experts_norm="pre_feedforward_layernorm_2",
        experts_post_norm="post_feedforward_layernorm_2",
        router_scale="router.scale",
    )
    fields = {**config, "num_experts_per_tok": config["top_k_experts"]}
    found = picking(names, fields, "num_experts", True, positive(config, "moe_intermediate_size"), inside="")
    assert found.experts is not None
    experts = replace(found.experts, router="router.proj", own_scales="router.per_expert_scale", beside=beside)
    return replace(found, experts=experts)


def _head_dim(config: dict[str, Any], kind: str) -> int:
    """That of the layers of this type. Raises InputError where they differ, or there are none."""
    pairs = zip(config["layer_types"], sizes_of_layers(config))
    found = {head_dim for own, (_, head_dim) in pairs if own == kind}
    if len(found) != 1:
        raise InputError(f"config.json: layers of {kind} must have one head_dim, not {sorted(found)}")
    return found.pop()
