"""The drivers of a call for tokens of one text, by the kind of the step."""

from __future__ import annotations

from collections.abc import Mapping

from runtime_py.engine.loop.adapters import adapter_down, adapter_up
from runtime_py.engine.loop.attention import attention, integer_append, razor_append
from runtime_py.engine.loop.blocks import blocks, norm
from runtime_py.engine.loop.delta_net import delta_rule
from runtime_py.engine.loop.driver import Maker
from runtime_py.engine.loop.experts import expert_floats, expert_product
from runtime_py.engine.loop.products import float_product, grouped_product, product
from runtime_py.engine.loop.state_space import state_space
from runtime_py.engine.loop.tokens import by_token
from runtime_py.engine.steps import table

MAKERS: Mapping[int, Maker] = {
    table.EMBED: by_token,
    table.EMBED_DENSE: by_token,
    table.EMBED_GROUPS: by_token,
    table.NORM: norm,
    table.QUANTIZE: blocks,
    table.MATMUL: product,
    table.GROUP_MATMUL: product,
    table.GROUPED: grouped_product,
    table.DENSE: float_product,
    table.SPARSE: float_product,
    table.ACTIVATE: blocks,
    table.ADD: by_token,
    table.KV_APPEND: by_token,
    table.ATTEND: attention,
    table.SCALE: by_token,
    table.REORDER: by_token,
    table.ROTATE: by_token,
    table.RAZOR: blocks,
    table.RAZOR_MATMUL: product,
    table.RAZOR_KV_APPEND: razor_append,
    table.RAZOR_ATTEND: attention,
    table.INTEGER_KV_APPEND: integer_append,
    table.INTEGER_ATTEND: attention,
    table.ROUTE: by_token,
    table.EXPERT_MATMUL: expert_product,
    table.EXPERT_GROUPED: expert_floats,
    table.EXPERT_DENSE: expert_floats,
    table.COMBINE: by_token,
    table.SHORT_CONVOLUTION: blocks,
    table.CAUSAL_CONVOLUTION: blocks,
    table.DELTA_RULE: delta_rule,
    table.STATE_SPACE: state_space,
    table.ADAPTER_DOWN: adapter_down,
    table.ADAPTER_UP: adapter_up,
}
