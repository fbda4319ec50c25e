"""transformers' modules in the form that all else here expects: linear layers, and parameters for what is stored."""

from __future__ import annotations

from torch import nn

from toolchain.numerics.experts import unpack_experts

_SCALARS = ("layer_scalar",)  # buffers of blocks that checkpoints hold


def plain_modules(model: nn.Module) -> nn.Module:
    """The model with its experts unpacked and what checkpoints hold of a block as parameters, in place."""
    for module in model.modules():
        for name, value in list(module.named_buffers(recurse=False)):
            if name in _SCALARS:
                delattr(module, name)
                module.register_parameter(name, nn.Parameter(value, requires_grad=False))
    return unpack_experts(model)
