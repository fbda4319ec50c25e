"""transformers' modules in the form that all else here expects: linear layers, and parameters for what is stored."""

from __future__ import annotations

from torch import nn

from toolchain.numerics.experts import unpack_experts
from toolchain.numerics.low_rank import factored_modules

_SCALARS = ("layer_scalar",)  # buffers of blocks that checkpoints hold


def plain_modules(model: nn.Module) -> nn.Module:
    """The model with its experts unpacked, layers of low rank where its config says so, and what checkpoints hold of a
    block as parameters, in place.
    """
    for module in model.modules():
        for name, value in list(module.named_buffers(recurse=False)):
            if name in _SCALARS:
                delattr(module, name)
                module.register_parameter(name, nn.Parameter(value, requires_grad=False))
    return factored_modules(unpack_experts(model))
