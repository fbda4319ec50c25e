"""transformers' packed experts as a linear layer for each expert and matrix, so that all else meets ordinary layers.

transformers holds the experts of a block in two arrays and multiplies slices of them; checkpoints mostly store a matrix
for each expert. A model whose experts are unpacked computes the same with modules
`mlp.experts.{number}.gate_proj|up_proj|down_proj`, whatever a checkpoint calls them (toolchain/source/stored_names.py).
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import nn
from transformers.integrations.moe import _default_apply_gate

from export.contract.errors import InputError

_now = threading.local()


class Expert(nn.Module):
    """One expert: down(activation(gate(x)) * up(x))."""

    def __init__(self, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor, activation: nn.Module) -> None:
        """Weights [N, K], which are not copied."""
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = map(_linear, (gate, up, down))
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))
        return found


def _linear(weight: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


class Experts(nn.ModuleList):
    """Takes the place of transformers' experts of one block."""

    def forward(self, hidden: torch.Tensor, picked: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """hidden float32 [tokens, hidden], picked int64 and weights float32 [tokens, k]: float32 [tokens, hidden]."""
        out = torch.zeros_like(hidden)
        for number in picked.unique().tolist():
            tokens, place = torch.where(picked == number)
            _now.tokens = tokens
            try:
                found = self[number](hidden[tokens])
            finally:
                _now.tokens = None
            out = out.index_add(0, tokens, found * weights[tokens, place, None])
        return out


def tokens_at_hand() -> torch.Tensor | None:
    """Which tokens of its sequence the expert that now runs in this thread has, int64 [n]; None outside of experts."""
    return getattr(_now, "tokens", None)


def unpack_experts(model: nn.Module) -> nn.Module:
    """The model with Experts in place of packed ones, in place; their weights are not copied and have no gradients."""
    for name, module in list(model.named_modules()):
        if isinstance(getattr(module, "gate_up_proj", None), nn.Parameter):
            model.set_submodule(name, _unpacked(name, module))
    return model


def _unpacked(name: str, packed: Any) -> Experts:
    """Raises InputError for experts that compute anything else: biases, other orders of rows, gates of their own."""
    kind = type(packed)
    plain = getattr(packed, "is_concatenated", True) and not getattr(packed, "is_transposed", False)
    gate = getattr(kind, "_apply_gate", _default_apply_gate)
    known = {parameter for parameter, _ in packed.named_parameters()} == {"gate_up_proj", "down_proj"}
    if not plain or not known or gate is not _default_apply_gate:
        raise InputError(f"{name}: experts of {kind.__name__} are not supported")
    both, down = packed.gate_up_proj.data, packed.down_proj.data
    gates, ups = both.chunk(2, dim=1)
    return Experts(Expert(*weights, packed.act_fn) for weights in zip(gates, ups, down))
