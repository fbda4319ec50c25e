"""What errors of weights cost on unseen text, by how a layer's Hessian is made: before anything is quantized.

    python -m tests.benchmarks.information SOURCE [--blocks 3 14 25] [--sequences 96]

Gradients of the loss of sampled labels give the Fisher information, and half of an error's square in its metric is the
KL that the error costs, to second order. Errors here are those of rounding: random, as large as a row's weights in
proportion, and spread to later columns by the inverse of the layer's Hessian, as the sweep of the quantizer does
(hessian.inverse_factor). The Hessian is made of some sequences, the cost is measured on others. One line for a layer,
costs over that of all tokens alike: tokens weighed by their squared gradients (GuidedQuant, arXiv 2505.07004), half so
and half alike (`--guided`), and the last with errors also spread to later rows by the second moments of the output
gradients (YAQA's Kronecker factors, arXiv 2505.22988), every row by itself and in runs of 32 and 128.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, PreTrainedModel

from export.graph.archs import model_spec
from toolchain.calibrate.gradients import token_weights
from toolchain.calibrate.text import calibration_text, load_tokenizer, sample_sequences
from toolchain.numerics.hessian import damped
from toolchain.settings.calibration import BUILT_IN
from toolchain.source.checkpoint import SourceModel

LENGTH, UNSEEN, DRAWS = 256, 48, 4
DAMPING, ROW_DAMPING = 0.05, 0.1
Seen = dict[str, tuple[torch.Tensor, torch.Tensor]]  # by layer: inputs and output gradients [sequences, length, width]


def observed(model: PreTrainedModel, names: list[str], tokens: np.ndarray) -> Seen:
    """Inputs and gradients of the loss of labels that the model draws itself, for tokens int64 [sequences, length]."""
    inputs: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    gradients: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    outputs: dict[str, torch.Tensor] = {}
    for name in names:

        def note(module: torch.nn.Module, given: tuple[torch.Tensor], output: torch.Tensor, name: str = name) -> None:
            inputs[name].append(given[0].detach()[0].half())
            outputs[name] = output

        model.get_submodule(name).register_forward_hook(note)
    draws = torch.Generator().manual_seed(0)
    for row in torch.from_numpy(tokens):
        embedded = model.get_input_embeddings()(row[None]).detach().requires_grad_()
        logits = model(inputs_embeds=embedded, use_cache=False).logits[0]
        labels = torch.multinomial(torch.softmax(logits.detach(), -1), 1, generator=draws)[:, 0]
        found = torch.autograd.grad(cross_entropy(logits, labels, reduction="sum"), [outputs[n] for n in names])
        for name, gradient in zip(names, found):
            gradients[name].append(gradient[0])
    return {name: (torch.stack(inputs.pop(name)), torch.stack(gradients.pop(name))) for name in names}


def spreading(hessian: torch.Tensor, damping: float, run: int = 1) -> torch.Tensor:
    """What becomes of errors [n] that are made in order, in runs of so many, when later ones absorb them: [n, n]."""
    h = torch.from_numpy(damped(hessian.double().numpy(), damping)[0])
    upper = torch.linalg.cholesky(h.flip(0, 1)).flip(0, 1)  # h = upper upper^T
    for first in range(0, len(h), run):
        own = slice(first, first + run)
        upper[:, own] = upper[:, own] @ torch.linalg.inv(upper[own, own])
    return torch.linalg.inv(upper).T.float()


def costs(weight: torch.Tensor, inputs: torch.Tensor, gradients: torch.Tensor) -> dict[str, float]:
    """Of errors in a weight [N, K] on the last UNSEEN sequences, by how its Hessian is made of the others."""
    x, g = inputs[:-UNSEEN].float().flatten(0, 1), gradients[:-UNSEEN].flatten(0, 1)
    unseen = [g.T @ x.float() for x, g in zip(inputs[-UNSEEN:], gradients[-UNSEEN:])]
    squares = g.square().mean(dim=1)
    half = torch.from_numpy(token_weights(squares[None].numpy())[0])
    h = {name: (x.T * w) @ x for name, w in (("alike", torch.ones_like(half)), ("gradients", squares), ("half", half))}
    sizes = weight.square().mean(dim=1, keepdim=True).sqrt()

    def cost(columns: torch.Tensor, rows: torch.Tensor | None = None) -> float:
        draws, total = torch.Generator().manual_seed(1), 0.0
        for _ in range(DRAWS):
            error = (torch.randn(weight.shape, generator=draws) * sizes) @ columns.T
            error = error if rows is None else rows @ error
            total += float(np.mean([float((fisher * error).sum()) ** 2 for fisher in unseen]))
        return total

    columns = {name: spreading(hessian, DAMPING) for name, hessian in h.items()}
    found = {name: cost(own) for name, own in columns.items()}
    for run in (1, 32, 128):
        found[f"rows by {run}"] = cost(columns["half"], spreading(g.T @ g, ROW_DAMPING, run))
    return {name: value / found["alike"] for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--blocks", type=int, nargs="+", default=[3, 14, 25])
    parser.add_argument("--sequences", type=int, default=96)
    asked = parser.parse_args()
    spec = model_spec(SourceModel(asked.source).config)
    text, tokenizer = calibration_text(BUILT_IN, asked.source), load_tokenizer(asked.source)
    count = asked.sequences + UNSEEN
    tokens = sample_sequences(text, tokenizer, count, LENGTH, 1, spec.vocab_size, BUILT_IN).tokens
    model = AutoModelForCausalLM.from_pretrained(asked.source, dtype=torch.float32).eval().requires_grad_(False)
    names = [spec.block_name(block) + name for block in asked.blocks for name in spec.names(block).linears()]
    for name, (inputs, gradients) in observed(model, names, tokens).items():
        found = costs(model.get_submodule(name).weight, inputs, gradients)
        print(f"{name:40}", ", ".join(f"{how} {value:.2f}" for how, value in found.items()), flush=True)


if __name__ == "__main__":
    main()
