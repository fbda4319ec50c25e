"""Linear layers of low rank in transformers' models, two of which share a factor (export/graph/low_rank.py)."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import torch
from torch import nn

from export.contract.errors import InputError
from export.graph.archs import model_spec
from export.graph.low_rank import RECORD
from export.graph.spec import ModelSpec

_running = threading.local()  # `last`: a first layer, its input, and what its factor made of that, in this thread


class LowRank(nn.Module):
    """y = b(a(x)), the first layer of a pair.

    The second layer takes over what a(x) is: a computes once, as a node of a graph does, and hooks on it see one call.
    """

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.a = _like(linear, linear.in_features, rank, False)
        self.b = _like(linear, rank, linear.out_features, linear.bias is not None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.a(x)
        _running.last = self, x, inner
        out: torch.Tensor = self.b(inner)
        return out


class SharesFactor(nn.Module):
    """y = b(a(x)), where a is the first layer's: the second of a pair."""

    def __init__(self, linear: nn.Linear, first: LowRank) -> None:
        super().__init__()
        self.b = _like(linear, first.a.out_features, linear.out_features, linear.bias is not None)
        self._first = [first]  # in a list, so that its parameters are not this module's, too

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, last = self._first[0], getattr(_running, "last", None)
        _running.last = None
        inner = last[2] if last is not None and last[0] is first and last[1] is x else first.a(x)
        out: torch.Tensor = self.b(inner)
        return out


def factored_modules(model: nn.Module) -> nn.Module:
    """The model with modules of low rank where its config has the record, in place; their weights are not set."""
    config = getattr(model, "config", None)
    if getattr(config, RECORD, None) is None:
        return model
    assert config is not None
    spec = model_spec(config.to_dict())
    for number in range(spec.blocks):
        block, names = model.get_submodule(spec.block_name(number).rstrip(".")), spec.names(number)
        if names.shared.query_key:
            _pair(block, names.query, names.key, names.shared.query_key_rank)
        if names.shared.gate_up:
            _pair(block, names.gate, names.up, names.shared.gate_up_rank)
    return model.requires_grad_(next(model.parameters()).requires_grad)


def multiplied(tensors: Mapping[str, torch.Tensor], spec: ModelSpec) -> dict[str, torch.Tensor]:
    """The tensors of a model of low rank as those of one without: products of the factors, float32.

    Raises InputError for factors that do not fit each other.
    """
    found = dict(tensors)
    for first, others in _factors(spec).items():
        shared = found.pop(f"{first}.weight")
        for name in others:
            whole, factor = name.removesuffix(".b"), found[f"{name}.weight"]
            if shared.ndim != 2 or factor.ndim != 2 or factor.shape[1] != len(shared):
                shapes = f"{list(factor.shape)} and {list(shared.shape)}"
                raise InputError(f"{name} and {first} have shapes {shapes}, which are no factors of a matrix")
            found[f"{whole}.weight"] = found.pop(f"{name}.weight") @ shared
            if f"{name}.bias" in found:
                found[f"{whole}.bias"] = found.pop(f"{name}.bias")
    return found


def factor_names(spec: ModelSpec) -> set[str]:
    """Parameters of all layers of low rank, full names; not every model has the biases among them."""
    modules = {name for first, others in _factors(spec).items() for name in (first, *others)}
    return {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}


def _factors(spec: ModelSpec) -> dict[str, tuple[str, str]]:
    """Full names: every shared factor, and the two layers that read it."""
    found: dict[str, tuple[str, str]] = {}
    for number in range(spec.blocks):
        prefix, names = spec.block_name(number), spec.names(number)
        pairs = ((names.shared.query_key, names.query, names.key), (names.shared.gate_up, names.gate, names.up))
        found |= {f"{prefix}{a}": (f"{prefix}{one}", f"{prefix}{other}") for a, one, other in pairs if a is not None}
    return found


def _like(linear: nn.Linear, columns: int, rows: int, bias: bool) -> nn.Linear:
    """A layer of these sizes where the other one is, its weights not set."""
    weight = linear.weight
    made: nn.Linear = nn.utils.skip_init(nn.Linear, columns, rows, bias=bias, device=weight.device, dtype=weight.dtype)
    return made


def _pair(block: nn.Module, first: str | None, second: str | None, rank: int) -> None:
    """Replace two linear layers; first and second: names of their .b."""
    assert first is not None and second is not None
    one, other = first.removesuffix(".b"), second.removesuffix(".b")
    before, after = block.get_submodule(one), block.get_submodule(other)
    assert isinstance(before, nn.Linear) and isinstance(after, nn.Linear)
    made = LowRank(before, rank)
    block.set_submodule(one, made)
    block.set_submodule(other, SharesFactor(after, made))
