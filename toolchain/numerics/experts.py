"""transformers' packed experts as a linear layer for each expert and matrix, so that all else meets ordinary layers.

transformers holds the experts of a block in two arrays and multiplies slices of them; checkpoints mostly store a matrix
for each expert. A model whose experts are unpacked computes the same with modules
`mlp.experts.{number}.gate_proj|up_proj|down_proj`, whatever a checkpoint calls them (toolchain/source/stored_names.py).

Arrays are [experts, rows, columns] with the gate's rows before those of up, or, as in gpt-oss, [experts, columns, rows]
with rows of gate and up in turns and with biases.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from transformers.integrations.moe import _default_apply_gate

from export.contract.errors import InputError

_now = threading.local()
_WITHOUT_GATES = "NemotronHExperts"
_STACKED = {"gate_up_proj", "down_proj", "gate_up_proj_bias", "down_proj_bias"}
_PART = re.compile(r"(.*\.experts)\.(\d+)\.(gate|up|down)_proj\.(weight|bias)")
Layer = tuple[torch.Tensor, torch.Tensor | None]  # weight [N, K] and bias


class Expert(nn.Module):
    """One expert: down(gated(gate(x), up(x)))."""

    def __init__(
        self, gate: Layer, up: Layer, down: Layer, gated: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    ) -> None:
        """Weights and biases are not copied."""
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = (_linear(*layer) for layer in (gate, up, down))
        self.gated = gated

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.down_proj(self.gated(self.gate_proj(x), self.up_proj(x)))
        return found


class PlainExpert(nn.Module):
    """One expert without a gate: down(activation(up(x)))."""

    def __init__(self, up: torch.Tensor, down: torch.Tensor, activation: nn.Module) -> None:
        """Weights [N, K] are not copied."""
        super().__init__()
        self.up_proj, self.down_proj = _linear(up, None), _linear(down, None)
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.down_proj(self.activation(self.up_proj(x)))
        return found


class Gated(nn.Module):
    """activation(gate) * up."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.activation(gate) * up
        return found


class Clamped(nn.Module):
    """ClampedGate of export/graph/spec.py."""

    def __init__(self, alpha: float, limit: float) -> None:
        super().__init__()
        self.alpha, self.limit = alpha, limit

    def forward(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        gate = gate.clamp(max=self.limit)
        return (up.clamp(-self.limit, self.limit) + 1) * (gate * torch.sigmoid(gate * self.alpha))


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
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
        plain = type(module).__name__ == _WITHOUT_GATES
        if plain or isinstance(getattr(module, "gate_up_proj", None), nn.Parameter):
            model.set_submodule(name, _without_gates(module) if plain else _unpacked(name, module))
            for part in list(model.get_submodule(name.rpartition(".")[0]).modules()):
                _with_parameters(part)
    return model


def _without_gates(packed: Any) -> Experts:
    pairs = zip(packed.up_proj.data, packed.down_proj.data)
    return Experts(PlainExpert(up, down, packed.act_fn) for up, down in pairs)


def _with_parameters(router: nn.Module) -> None:
    """What a checkpoint holds of a part with a router (a bias of picks) as parameters, as all that is read."""
    for name, value in list(router.named_buffers(recurse=False)):
        if name in router.state_dict():
            delattr(router, name)
            router.register_parameter(name, nn.Parameter(value, requires_grad=False))


def packed_experts(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors with those of experts stacked as gpt-oss has them, for transformers' own loader."""
    found, stacks = _apart(tensors)
    for experts in {name.rpartition(".")[0] for name in stacks}:
        for kind, suffix in (("weight", ""), ("bias", "_bias")):
            gate, up, down = (stacks[f"{experts}.{matrix} {kind}"] for matrix in ("gate", "up", "down"))
            both = torch.stack([gate, up], 2).flatten(1, 2)  # rows in turns
            found[f"{experts}.gate_up_proj{suffix}"] = both.mT.contiguous() if kind == "weight" else both
            found[f"{experts}.down_proj{suffix}"] = down.mT.contiguous() if kind == "weight" else down
    return found


def experts_as_rows(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors with those of experts stacked as transformers' own modules have them, for its loader."""
    found, stacks = _apart(tensors)
    for experts in {name.rpartition(".")[0] for name in stacks}:
        gate, up, down = (stacks[f"{experts}.{matrix} weight"] for matrix in ("gate", "up", "down"))
        found[f"{experts}.gate_up_proj"], found[f"{experts}.down_proj"] = torch.cat([gate, up], 1), down
    return found


def _apart(
    tensors: Mapping[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Tensors that are of no expert, and the stacks of the others by module, matrix and kind."""
    found, parts = dict[str, torch.Tensor](), dict[str, dict[int, torch.Tensor]]()
    for name, value in tensors.items():
        if (part := _PART.fullmatch(name)) is None:
            found[name] = value
        else:
            experts, number, matrix, kind = part.groups()
            parts.setdefault(f"{experts}.{matrix} {kind}", {})[int(number)] = value
    return found, {name: torch.stack([own[number] for number in sorted(own)]) for name, own in parts.items()}


def _unpacked(name: str, packed: Any) -> Experts:
    """Raises InputError for experts that compute anything else: other orders of rows, gates of their own."""
    kind = type(packed)
    if {parameter for parameter, _ in packed.named_parameters()} == _STACKED and kind.__name__ == "GptOssExperts":
        return _in_turns(packed)
    plain = getattr(packed, "is_concatenated", True) and not getattr(packed, "is_transposed", False)
    gate = getattr(kind, "_apply_gate", _default_apply_gate)
    known = {parameter for parameter, _ in packed.named_parameters()} == {"gate_up_proj", "down_proj"}
    if not plain or not known or gate is not _default_apply_gate:
        raise InputError(f"{name}: experts of {kind.__name__} are not supported")
    both, down = packed.gate_up_proj.data, packed.down_proj.data
    gates, ups = both.chunk(2, dim=1)
    gated = Gated(packed.act_fn)
    return Experts(Expert((g, None), (u, None), (d, None), gated) for g, u, d in zip(gates, ups, down))


def _in_turns(packed: Any) -> Experts:
    both, down = packed.gate_up_proj.data.mT, packed.down_proj.data.mT
    bias, down_bias = packed.gate_up_proj_bias.data, packed.down_proj_bias.data
    gated = Clamped(packed.alpha, packed.limit)
    return Experts(
        Expert((both[i, ::2], bias[i, ::2]), (both[i, 1::2], bias[i, 1::2]), (down[i], down_bias[i]), gated)
        for i in range(len(down))
    )
