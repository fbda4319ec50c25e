"""Gradients of the language-model loss on the calibration sequences: which weights and which tokens matter.

Runs block after block forward, keeps what lies between them, and goes back block by block, each computed once more, so
that a block, the embedding and the head are in memory, and no more of the model (with squared gradients of every
weight another 4 bytes a parameter).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers.pytorch_utils import Conv1D

from export.graph.spec import ModelSpec
from toolchain.calibrate.blocks import BlockRunner
from toolchain.numerics.experts import tokens_at_hand
from toolchain.numerics.products import FLOAT32
from toolchain.settings.solver import PLANNED
from toolchain.source.checkpoint import SourceModel
from toolchain.system.device import CPU, each
from toolchain.system.progress import Reporter
from toolchain.system.threads import pieces

PLAN_SEQUENCES = 16  # of the calibration text that a plan of widths looks at
_Squares = dict[str, torch.Tensor]
_STATES = 1 << 29  # bytes of hidden states between all blocks that are held; more where blocks are large


@dataclass(frozen=True)
class Gradients:
    """Squared gradients by full module name."""

    weights: dict[str, np.ndarray]  # sum over sequences of the squared weight gradient, float32 [N, K]
    # mean over a group of outputs of the squared output gradient, float32 [groups, sequences, length]
    outputs: dict[str, np.ndarray]
    # mean over the tokens that a layer read of the squared gradient of each output, float32 [N]
    rows: dict[str, np.ndarray] = field(default_factory=dict)

    def among(self, chosen: np.ndarray, count: int) -> Gradients:
        """The same for `count` sequences, of which these are the `chosen`, numbers int64; the others have zeros."""
        found = {}
        for name, squares in self.outputs.items():
            found[name] = np.zeros((squares.shape[0], count, squares.shape[2]), np.float32)
            found[name][:, chosen] = squares
        return Gradients(self.weights, found, self.rows)


def measure_gradients(
    source: SourceModel, spec: ModelSpec, tokens: np.ndarray, quiet: bool, per_weight: bool, groups: int = 1,
    precision: str = FLOAT32, device: torch.device = CPU,
) -> Gradients:  # fmt: skip
    """Gradients for all linear layers of the blocks; tokens int64 [sequences, length].

    Without `per_weight` only the output gradients are kept, averaged over `groups` runs of rows. Source of the two
    uses: SqueezeLLM (arXiv 2306.07629) for weights, GuidedQuant (arXiv 2505.07004) for outputs.
    """
    runner = BlockRunner(source, spec, precision, device)
    names = spec.quantizable()
    found = Gradients({}, {name: np.zeros((groups, *tokens.shape), np.float32) for name in names}, {})
    parts, blocks = pieces(len(tokens), sequences_together(runner, tokens.shape[1])), range(spec.blocks)
    with Reporter("Gradients", 2 * len(parts) * spec.blocks, quiet) as report:
        for part in parts:
            states = [runner.embed(tokens[part])]
            for number in blocks:
                states.append(runner.run(runner.load_block(number), states[-1]))
                report.step(f"block {number + 1} forward")
            gradient = runner.loss_gradients(states.pop(), tokens[part])
            for number in reversed(blocks):
                block = _Block(runner, number, per_weight, groups)
                gradient = block.backward(states.pop(), gradient, part, found)
                report.step(f"block {number + 1} backward")
    for sums in found.rows.values():
        sums /= tokens.size
    return found


def with_gradients(asked: int, count: int) -> np.ndarray:
    """The numbers of the sequences of `count` whose gradients are taken, int64; asked: --gradient-sequences."""
    return evenly_spread(PLAN_SEQUENCES if asked == PLANNED else asked or count, count)


def evenly_spread(some: int, count: int) -> np.ndarray:
    """The numbers of at most `some` of `count` sequences, int64."""
    some = min(some, count)
    return np.arange(some) * count // some


def token_weights(squares: np.ndarray) -> np.ndarray:
    """What the tokens of guided Hessians weigh, [..., sequences, length] of their squares: half by these, half alike.

    Sequences of zeros, whose gradients nobody took, have the second half alone.

    By the gradients alone, as in GuidedQuant, a Hessian knows few tokens where these differ much, and fits those of the
    calibration text (docs/quantizer.md, What errors cost).
    """
    mean = squares.mean(axis=(-2, -1), keepdims=True, dtype=np.float64)
    shares: np.ndarray = (squares / np.maximum(mean, 1e-30) + 1.0).astype(np.float32)
    return shares


def row_weights(squares: np.ndarray) -> np.ndarray:
    """What errors of rows weigh, float32 [N]: half by their squares, half alike, as tokens do.

    squares: of their outputs' gradients, or in proportion. By these alone, scribe-6M at 3 bits loses a tenth more than
    with rows that weigh alike; half so, a twentieth less (docs/quantizer.md).
    """
    mean = max(float(squares.mean(dtype=np.float64)), 1e-30)
    return ((squares / mean + 1.0) / 2.0).astype(np.float32)


def sequences_together(runner: BlockRunner, length: int) -> int:
    """How many sequences' states between all blocks are held at once."""
    spec = runner.spec
    room = max(_STATES, 2 * runner.block_bytes(0))
    return max(1, room // (4 * length * runner.state_size * (spec.blocks + 1)))


class _Block:
    """A block on the way back: gradients of its outputs in, gradients of its inputs out."""

    def __init__(self, runner: BlockRunner, number: int, per_weight: bool, groups: int) -> None:
        self._runner, self._prefix, self._groups = runner, runner.spec.block_name(number), groups
        self._block = runner.load_block(number)
        self._modules = {name: self._block.get_submodule(name) for name in runner.spec.names(number).linears()}
        self._weights = {name: weight_of(module) for name, module in self._modules.items()} if per_weight else {}
        for weight in self._weights.values():
            weight.requires_grad_(True)
        self._running = threading.local()  # the layers' outputs of this thread's sequence, and the tokens of experts
        self._hooks = [module.register_forward_hook(self._hook(name)) for name, module in self._modules.items()]

    def _hook(self, name: str) -> Callable[..., None]:
        def forward(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> None:
            self._running.outputs[name], self._running.tokens[name] = output, tokens_at_hand()

        return forward

    def backward(self, inputs: torch.Tensor, gradient: torch.Tensor, part: slice, found: Gradients) -> torch.Tensor:
        """Adds to `found` what the sequences `part` of it give.

        inputs, gradient: of the block and of its outputs, float32 [sequences, length, hidden].
        """
        below = torch.empty_like(inputs)

        def one(sequence: int) -> tuple[torch.Tensor, _Squares, _Squares, _Squares]:
            """Of one sequence: the gradient of the inputs; squares by row group, by row, and of the weights' gradients.

            Nothing of experts that no token reaches.
            """
            running = self._running
            running.outputs, running.tokens = {}, {}
            own = slice(sequence, sequence + 1)
            given = inputs[own].to(self._runner.device).requires_grad_()
            result = self._runner.forward(self._block, given)
            outputs, tokens, running.outputs = running.outputs, running.tokens, {}
            weights = {name: self._weights[name] for name in outputs if name in self._weights}
            wanted = [given, *outputs.values(), *weights.values()]
            first, *rest = torch.autograd.grad(result, wanted, gradient[own].to(result.device))
            of_outputs = {n: g.reshape(-1, g.shape[-1]).square() for n, g in zip(outputs, rest)}
            by_group = {n: _by_token(s, self._groups, tokens[n], inputs.shape[1]) for n, s in of_outputs.items()}
            by_row = {n: s.sum(dim=0) for n, s in of_outputs.items()}
            return first, by_group, by_row, {n: g.square() for n, g in zip(weights, rest[len(outputs) :])}

        squares = {name: torch.zeros_like(weight) for name, weight in self._weights.items()}
        answers = each(one, range(len(inputs)), self._runner.device)
        for sequence, (first, by_group, by_row, by_weight) in enumerate(answers):
            below[sequence] = first[0]
            for name, values in by_group.items():
                found.outputs[self._prefix + name][:, part.start + sequence] = values.cpu().numpy()
            for name, values in by_row.items():
                array, full = values.cpu().numpy(), self._prefix + name
                found.rows[full] = found.rows[full] + array if full in found.rows else array
            for name, values in by_weight.items():
                squares[name] += values
        for name, total in squares.items():
            turned = total.T if isinstance(self._modules[name], Conv1D) else total
            array, before = turned.cpu().contiguous().numpy(), found.weights.get(self._prefix + name)
            found.weights[self._prefix + name] = array if before is None else before + array
        for hook in self._hooks:  # else the block, which its hooks hold by way of this, stays until it is collected
            hook.remove()
        return below


def _by_token(squares: torch.Tensor, groups: int, tokens: torch.Tensor | None, length: int) -> torch.Tensor:
    """Mean squares of a layer's output gradient over runs of rows, float32 [groups, length].

    squares: [length, N], or of an expert [n, N] for these tokens; others have zeros.
    """
    found = torch.stack([part.mean(dim=-1) for part in squares.tensor_split(groups, dim=-1)])
    return found if tokens is None else found.new_zeros(groups, length).index_copy(1, tokens, found)


def weight_of(module: torch.nn.Module) -> torch.Tensor:
    """A linear layer's weight, as the module keeps it."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return weight
