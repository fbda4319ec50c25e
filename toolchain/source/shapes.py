"""Whether a checkpoint's tensors have the shapes that its config.json asks for, before anything computes with them."""

from __future__ import annotations

from toolchain.source.checkpoint import SourceModel
from toolchain.source.empty_model import empty_model


def check_shapes(source: SourceModel) -> None:
    """Raises InputError for the first tensor of another shape than transformers' model has; reads headers alone."""
    for name, parameter in empty_model(source.config).named_parameters():
        if source.has(name):
            source.check_shape(name, tuple(parameter.shape))
