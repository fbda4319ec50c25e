"""Gradients of the language-model loss on the calibration sequences: which weights and which tokens matter.

Runs the whole model forward and backward once per sequence, in float32, so it needs the model and one gradient in
memory (about 8 bytes per parameter, 12 with squared gradients of every weight).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from export.spec import ModelSpec
from toolchain.progress import Reporter
from toolchain.source import SourceModel


@dataclass(frozen=True)
class Gradients:
    """Squared gradients by full module name."""

    weights: dict[str, np.ndarray]  # sum over sequences of the squared weight gradient, float32 [N, K]
    outputs: dict[str, np.ndarray]  # mean over outputs of the squared output gradient, float32 [sequences, length]


def measure(source: SourceModel, spec: ModelSpec, tokens: np.ndarray, quiet: bool, per_weight: bool) -> Gradients:
    """Gradients for all linear layers of the blocks; tokens int64 [sequences, length].

    Without `per_weight` only the output gradients are kept. Source of the two uses: SqueezeLLM (arXiv 2306.07629)
    for weights, GuidedQuant (arXiv 2505.07004) for outputs.
    """
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        source.folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
    ).eval()
    model.requires_grad_(False)
    modules = {name: model.get_submodule(name) for name in spec.quantizable()}
    squares = {name: torch.zeros_like(_weight(m)) for name, m in modules.items()} if per_weight else {}
    outputs = {name: np.zeros(tokens.shape, np.float32) for name in modules}
    current = 0

    def hook(name: str):  # type: ignore[no-untyped-def]
        def forward(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> None:
            def backward(gradient: torch.Tensor) -> None:
                outputs[name][current] = gradient[0].square().mean(dim=-1).numpy()

            output.register_hook(backward)

        return forward

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    for module in modules.values():
        _weight(module).requires_grad_(True)
    with Reporter("Gradients", len(tokens), quiet) as report:
        for current in range(len(tokens)):
            ids = torch.from_numpy(tokens[current : current + 1])
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            for name, module in modules.items():
                gradient = _weight(module).grad
                if per_weight and gradient is not None:
                    squares[name] += gradient.square()
            model.zero_grad(set_to_none=True)
            report.step("sequence")
    for handle in handles:
        handle.remove()
    by_weight = {n: (s.T if isinstance(modules[n], Conv1D) else s).contiguous().numpy() for n, s in squares.items()}
    return Gradients(by_weight, outputs)


def _weight(module: torch.nn.Module) -> torch.Tensor:
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return weight
