"""Gradients of the language-model loss on the calibration sequences: which weights and which tokens matter.

Runs the whole model forward and backward once per sequence, in float32, so it needs the model and one gradient in
memory (about 8 bytes per parameter, 12 with squared gradients of every weight).
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
import torch
from transformers.pytorch_utils import Conv1D

from export.graph.spec import ModelSpec
from toolchain.calibrate.own_text import whole_model
from toolchain.numerics.products import FLOAT32
from toolchain.source.checkpoint import SourceModel
from toolchain.source.experts import tokens_at_hand
from toolchain.system.device import CPU, each
from toolchain.system.progress import Reporter


@dataclass(frozen=True)
class Gradients:
    """Squared gradients by full module name."""

    weights: dict[str, np.ndarray]  # sum over sequences of the squared weight gradient, float32 [N, K]
    # mean over a group of outputs of the squared output gradient, float32 [groups, sequences, length]
    outputs: dict[str, np.ndarray]


def measure_gradients(
    source: SourceModel, spec: ModelSpec, tokens: np.ndarray, quiet: bool, per_weight: bool, groups: int = 1,
    precision: str = FLOAT32, device: torch.device = CPU,
) -> Gradients:  # fmt: skip
    """Gradients for all linear layers of the blocks; tokens int64 [sequences, length].

    Without `per_weight` only the output gradients are kept, averaged over `groups` runs of rows. Source of the two
    uses: SqueezeLLM (arXiv 2306.07629) for weights, GuidedQuant (arXiv 2505.07004) for outputs.
    """
    model = whole_model(source, precision, device)
    modules = {name: model.get_submodule(name) for name in spec.quantizable()}
    squares = {name: torch.zeros_like(weight_of(m)) for name, m in modules.items()} if per_weight else {}
    outputs = {name: np.zeros((groups, *tokens.shape), np.float32) for name in modules}
    running = threading.local()  # the layers' outputs of this thread's sequence, and the tokens of experts

    def hook(name: str):  # type: ignore[no-untyped-def]
        def forward(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> None:
            running.outputs[name], running.tokens[name] = output, tokens_at_hand()

        return forward

    def one(sequence: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Squared gradients of one sequence: of the layers' outputs by row group, and of their weights if asked.

        Nothing of experts that no token reaches.
        """
        running.outputs, running.tokens = {}, {}
        ids = torch.from_numpy(tokens[sequence : sequence + 1]).to(device)
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        reached = [name for name in modules if name in running.outputs]
        wanted = [running.outputs[name] for name in reached]
        weights = [weight_of(modules[name]) for name in reached] if per_weight else []
        found = torch.autograd.grad(loss, wanted + weights)
        by_group = {
            name: _by_token(g, groups, running.tokens[name], ids.shape[1])
            for name, g in zip(reached, found[: len(wanted)])
        }
        running.outputs = {}
        return by_group, {name: g.square() for name, g in zip(reached, found[len(wanted) :])}

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    if per_weight:
        for module in modules.values():
            weight_of(module).requires_grad_(True)
    else:  # a layer whose weight asks for a gradient computes it, wanted or not
        handles.append(model.get_input_embeddings().register_forward_hook(_requires_gradient))
    with Reporter("Gradients", len(tokens), quiet) as report:
        for sequence, (by_output, by_weight_) in enumerate(each(one, range(len(tokens)), device)):
            for name, values in by_output.items():
                outputs[name][:, sequence] = values.cpu().numpy()
            for name, values in by_weight_.items():
                squares[name] += values
            report.step("sequence")
    for handle in handles:
        handle.remove()
    by_weight = {
        n: (s.T if isinstance(modules[n], Conv1D) else s).cpu().contiguous().numpy() for n, s in squares.items()
    }
    return Gradients(by_weight, outputs)


def _by_token(gradient: torch.Tensor, groups: int, tokens: torch.Tensor | None, length: int) -> torch.Tensor:
    """Mean squares of a layer's output gradient over runs of rows, float32 [groups, length].

    gradient: [1, length, N], or of an expert [n, N] for these tokens; others have zeros.
    """
    rows = gradient.reshape(-1, gradient.shape[-1])
    found = torch.stack([part.square().mean(dim=-1) for part in rows.tensor_split(groups, dim=-1)])
    return found if tokens is None else found.new_zeros(groups, length).index_copy(1, tokens, found)


def _requires_gradient(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
    return output.requires_grad_()


def weight_of(module: torch.nn.Module) -> torch.Tensor:
    """A linear layer's weight, as the module keeps it."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return weight
