"""What heads, channels and whole layers give on a text: one pass through the source, without gradients.

A channel's (head's) score is the energy that it adds to the output of the matrix that reads it: the squares of the
matrix's column(s) times the mean square of the input(s), as in Wanda (arXiv 2306.11695). A layer's is how far it turns
its input: one less the mean cosine of inputs and outputs (arXiv 2403.03853).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from export.graph.spec import ModelSpec
from toolchain.calibrate.blocks import BlockRunner, get_weight
from toolchain.source.checkpoint import SourceModel
from toolchain.system.progress import Reporter


@dataclass(frozen=True)
class Importance:
    """Scores, float64."""

    heads: np.ndarray  # [layers, heads]
    channels: np.ndarray  # [layers, feed_forward]
    layers: np.ndarray  # [layers]


def measured_importance(
    source: SourceModel, spec: ModelSpec, tokens: np.ndarray, precision: str, quiet: bool = True
) -> Importance:
    """tokens: int64 [sequences, length]."""
    output, down = spec.block.attention_output, spec.block.down
    assert output is not None and down is not None
    heads, channels = np.zeros((spec.layers, spec.heads)), np.zeros((spec.layers, spec.feed_forward))
    found = Importance(heads, channels, np.zeros(spec.layers))
    runner = BlockRunner(source, spec, precision)
    hidden = runner.embed(tokens)
    with Reporter("Measuring", spec.layers, quiet) as report:
        for layer in range(spec.layers):
            block = runner.load_block(layer)
            hessians, after = runner.hessians(block, (output, down), hidden)
            of_output, of_down = (
                (get_weight(block.get_submodule(name)).astype(np.float64) ** 2).sum(axis=0) * np.diag(hessians[name])
                for name in (output, down)
            )
            found.heads[layer] = of_output.reshape(spec.heads, -1).sum(axis=1)
            found.channels[layer] = of_down
            found.layers[layer] = 1 - float(torch.cosine_similarity(hidden, after, dim=-1).double().mean())
            hidden = after
            report.step(f"layer {layer}")
    return found
