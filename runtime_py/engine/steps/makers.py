"""Which function makes the driver of a step, by the kind of the call and of the step: "module.function" of loop/.

By name, because what runs from objects (engine/objects/) needs no maker, and makers need Numba. A step that a table
lacks cannot be had in such a call. plain: tokens of one text; packed: several whole texts; apart: single tokens of
several texts.
"""

from __future__ import annotations

from collections.abc import Mapping

from runtime_py.engine.steps import table

PLAIN: Mapping[int, str] = {
    table.EMBED: "tokens.by_token",
    table.EMBED_DENSE: "tokens.by_token",
    table.EMBED_GROUPS: "tokens.by_token",
    table.NORM: "blocks.norm",
    table.QUANTIZE: "blocks.blocks",
    table.MATMUL: "products.product",
    table.GROUP_MATMUL: "products.product",
    table.GROUPED: "products.grouped_product",
    table.DENSE: "products.float_product",
    table.SPARSE: "products.float_product",
    table.ACTIVATE: "blocks.blocks",
    table.ADD: "tokens.by_token",
    table.KV_APPEND: "tokens.by_token",
    table.ATTEND: "attention.attention",
    table.SCALE: "tokens.by_token",
    table.REORDER: "tokens.by_token",
    table.ROTATE: "tokens.by_token",
    table.RAZOR: "blocks.blocks",
    table.TENDER: "blocks.blocks",
    table.RAZOR_MATMUL: "products.product",
    table.RAZOR_KV_APPEND: "attention.razor_append",
    table.RAZOR_ATTEND: "attention.attention",
    table.INTEGER_KV_APPEND: "attention.integer_append",
    table.INTEGER_ATTEND: "attention.attention",
    table.ROUTE: "tokens.by_token",
    table.EXPERT_MATMUL: "experts.expert_product",
    table.EXPERT_GROUPED: "experts.expert_floats",
    table.EXPERT_DENSE: "experts.expert_floats",
    table.COMBINE: "tokens.by_token",
    table.SHORT_CONVOLUTION: "blocks.blocks",
    table.CAUSAL_CONVOLUTION: "blocks.blocks",
    table.DELTA_RULE: "delta_net.delta_rule",
    table.STATE_SPACE: "state_space.state_space",
    table.ADAPTER_DOWN: "adapters.adapter_down",
    table.ADAPTER_UP: "adapters.adapter_up",
}
PACKED: Mapping[int, str] = {
    table.EMBED: "tokens.by_token",
    table.EMBED_DENSE: "tokens.by_token",
    table.EMBED_GROUPS: "tokens.by_token",
    table.NORM: "blocks.norm",
    table.QUANTIZE: "blocks.blocks",
    table.MATMUL: "products.product",
    table.GROUP_MATMUL: "products.product",
    table.GROUPED: "products.grouped_product",
    table.DENSE: "products.float_product",
    table.SPARSE: "products.float_product",
    table.ACTIVATE: "blocks.blocks",
    table.ADD: "tokens.by_token",
    table.KV_APPEND: "packed.append",
    table.ATTEND: "packed.attention",
    table.SCALE: "tokens.by_token",
    table.REORDER: "tokens.by_token",
    table.ROTATE: "packed.rotate",
    table.ADAPTER_DOWN: "adapters.adapter_down",
    table.ADAPTER_UP: "adapters.adapter_up",
}
APART: Mapping[int, str] = {
    table.EMBED: "apart.by_token",
    table.EMBED_DENSE: "apart.by_token",
    table.EMBED_GROUPS: "apart.by_token",
    table.NORM: "apart.norm",
    table.QUANTIZE: "apart.blocks",
    table.MATMUL: "apart.product",
    table.GROUP_MATMUL: "apart.product",
    table.GROUPED: "products.grouped_product",
    table.DENSE: "products.float_product",
    table.SPARSE: "products.float_product",
    table.ACTIVATE: "apart.blocks",
    table.ADD: "apart.by_token",
    table.KV_APPEND: "apart.append",
    table.ATTEND: "apart.attention",
    table.INTEGER_KV_APPEND: "apart.integer_append",
    table.INTEGER_ATTEND: "apart.integer_attention",
    table.SCALE: "apart.by_token",
    table.REORDER: "apart.by_token",
    table.ROTATE: "apart.by_token",
    table.ROUTE: "apart.by_token",
    table.EXPERT_MATMUL: "experts.expert_product_apart",
    table.EXPERT_GROUPED: "experts.expert_floats",
    table.EXPERT_DENSE: "experts.expert_floats",
    table.COMBINE: "apart.by_token",
    table.SHORT_CONVOLUTION: "apart_states.short_convolution",
    table.CAUSAL_CONVOLUTION: "apart_states.causal_convolution",
    table.DELTA_RULE: "apart_states.delta_rule",
    table.STATE_SPACE: "apart_states.state_space",
    table.ADAPTER_DOWN: "apart.adapter_down",
    table.ADAPTER_UP: "apart.adapter_up",
}
MAKERS: Mapping[str, Mapping[int, str]] = {"plain": PLAIN, "packed": PACKED, "apart": APART}
