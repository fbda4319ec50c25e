"""Trainable forms of stored matrices, one file each, looked up by the name of the weight format."""

from __future__ import annotations

from importlib import import_module

import torch
from torch import nn

from export.artefacts.stored_matrix import StoredMatrix
from export.contract.errors import InputError
from toolchain.tune.trainable.base import TrainableMatrix

# By scheme: the file here and its class.
TRAINABLE = {
    "codebook": ("codebook", "TrainableLinear"),
    "nested": ("nested", "TrainableNested"),
    "trellis": ("trellis", "TrainableTrellis"),
    "vectors": ("vectors", "TrainableVectors"),
}


def trainable_layer(module: nn.Module, stored: StoredMatrix) -> TrainableMatrix:
    """A trainable layer that stands for `module` with the stored weights, on its device.

    Raises InputError where the format has no trainable form.
    """
    scheme = stored.layout.SCHEME
    if scheme not in TRAINABLE:
        raise InputError(f"weights of the format {scheme} cannot be tuned; use --tune-steps 0 --block-steps 0")
    file, name = TRAINABLE[scheme]
    layer = getattr(import_module(f"toolchain.tune.trainable.{file}"), name)(module, stored)
    assert isinstance(layer, TrainableMatrix)
    assert isinstance(module.weight, torch.Tensor)
    return layer.to(module.weight.device)
