"""Training of the classifier of runtime_py/widths/learned.py, and the choice of how sure it has to be.

As PMPD trains its learned scheduler (arXiv 2410.13461, section 4.2): cross entropy to the earliest step that keeps an
answer good enough. Three fifths of the prompts train, a fifth says when to stop and how sure the classifier has to be,
and a fifth, which neither has seen, is reported.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from runtime_py.widths.learned import NEVER, Classifier, Switch
from toolchain.scheduling.measure import Prompts

_QUERIES, _HIDDEN = 4, 64
_EPOCHS, _PATIENCE, _RATE, _DECAY = 400, 60, 2e-3, 0.05
_CONFIDENCES = np.linspace(0.0, 1.0, 101)


class _Network(nn.Module):
    """The classifier as torch trains it; `padding` of prompts hides what is behind their end."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        shapes = Classifier.shapes(_QUERIES, width, _HIDDEN, classes)
        self.arrays = nn.ParameterDict()
        for name, shape in shapes.items():
            start = torch.zeros(shape) if name.endswith("bias") else torch.randn(shape) / shape[-1] ** 0.5
            self.arrays[name] = nn.Parameter(start)
        with torch.no_grad():
            self.arrays["norm"].copy_(torch.stack([torch.ones(shapes["norm"][1]), torch.zeros(shapes["norm"][1])]))

    def forward(self, keys: torch.Tensor, values: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        """Logits [n, classes] of keys and values [n, T, D], padding bool [n, T]."""
        a = self.arrays
        scores = (a["queries"] @ keys.transpose(1, 2)) / keys.shape[2] ** 0.5  # [n, Q, T]
        shares = torch.softmax(scores.masked_fill(padding[:, None], float("-inf")), dim=-1)
        pooled = torch.cat([(shares @ keys).flatten(1), (shares @ values).flatten(1)], dim=1)
        normed = nn.functional.layer_norm(pooled, pooled.shape[1:], a["norm"][0], a["norm"][1])
        inner = torch.relu(nn.functional.linear(normed, a["hidden"], a["hidden_bias"]))
        return nn.functional.linear(inner, a["output"], a["output_bias"])


@dataclass(frozen=True)
class Trained:
    """The classifier and what it does to answers that it has not seen."""

    switch: Switch
    rows: list[dict[str, Any]]  # one for each way to choose the step: its name, ratio of perplexities and mean width
    answers: int  # that the rows are means over


def train(prompts: Prompts, quality: float, widths: tuple[int, int], answer: int, seed: int) -> Trained:
    """quality: ratio of perplexities that an answer may reach; answer: its tokens."""
    labels = _labels(prompts.divergences, quality)
    order = np.arange(len(labels))
    parts = order % 5  # every fifth prompt, so that each part covers the text
    training, choosing, unseen = parts < 3, parts == 3, parts == 4
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
        network = _fitted(prompts, labels, training, choosing)
    arrays = {name: value.detach().numpy().copy() for name, value in network.arrays.items()}
    classifier = Classifier(**arrays)
    chances = np.array([classifier.chances(k, v) for k, v in zip(prompts.keys, prompts.values)])
    confidence = _confidence(chances[choosing], prompts, choosing, quality, answer)
    switch = Switch(*widths, prompts.steps, prompts.layer, confidence, classifier)
    rows, divergences = [], prompts.divergences[unseen]
    count = len(divergences)
    ways = [(_named(step, widths), np.full(count, i)) for i, step in reversed(list(enumerate(prompts.steps)))]
    ways += [("learned", _classes(chances[unseen], confidence)), ("earliest that is good enough", labels[unseen])]
    for name, classes in ways:
        ratio = float(np.exp(divergences[np.arange(count), classes].mean()))
        rows.append({"step": name, "ratio": ratio, "width": _mean_width(classes, prompts.steps, widths, answer)})
    return Trained(switch, rows, count)


def _named(step: int, widths: tuple[int, int]) -> str:
    return f"{widths[0]} bits throughout" if step == NEVER else f"{widths[1]} bits from token {step} on"


def _labels(divergences: np.ndarray, quality: float) -> np.ndarray:
    """The first class of each answer that is good enough, int64 [n]; the last one always is."""
    return np.argmax(divergences <= np.log(quality), axis=1)


def _classes(chances: np.ndarray, confidence: float) -> np.ndarray:
    """What Switch.step() chooses, for chances [n, classes]."""
    late_enough = np.cumsum(chances, axis=1)
    late_enough[:, -1] = 1.0
    return np.argmax(late_enough >= confidence, axis=1)


def _confidence(chances: np.ndarray, prompts: Prompts, chosen: np.ndarray, quality: float, answer: int) -> float:
    """The least for which these answers are good enough on average, and every larger one keeps them so."""
    divergences = prompts.divergences[chosen]
    best = 1.0
    for confidence in _CONFIDENCES[::-1]:
        classes = _classes(chances, confidence)
        if divergences[np.arange(len(classes)), classes].mean() > np.log(quality):
            break
        best = float(confidence)
    return best


def _mean_width(classes: np.ndarray, steps: tuple[int, ...], widths: tuple[int, int], answer: int) -> float:
    """Bits of a code that an answer's tokens read."""
    wide = np.minimum(np.array(steps)[classes], answer).mean() / answer
    return float(widths[1] + (widths[0] - widths[1]) * wide)


def _fitted(prompts: Prompts, labels: np.ndarray, training: np.ndarray, choosing: np.ndarray) -> _Network:
    """The network that is best on the prompts to choose by."""
    longest = max(map(len, prompts.keys))
    inputs = [np.zeros((len(labels), longest, prompts.keys[0].shape[1]), np.float32) for _ in range(2)]
    padding = np.ones((len(labels), longest), bool)
    for i, pair in enumerate(zip(prompts.keys, prompts.values)):
        padding[i, : len(pair[0])] = False
        for array, own in zip(inputs, pair):
            array[i, : len(own)] = own
    keys, values, hidden = (torch.from_numpy(array) for array in (*inputs, padding))
    wanted, network = torch.from_numpy(labels), _Network(keys.shape[2], len(prompts.steps))
    optimizer = torch.optim.AdamW(network.parameters(), lr=_RATE, weight_decay=_DECAY)
    best, kept, since = float("inf"), copy.deepcopy(network), 0
    for _ in range(_EPOCHS):
        optimizer.zero_grad()
        logits = network(keys[training], values[training], hidden[training])
        nn.functional.cross_entropy(logits, wanted[training]).backward()
        optimizer.step()
        with torch.no_grad():
            logits = network(keys[choosing], values[choosing], hidden[choosing])
            loss = float(nn.functional.cross_entropy(logits, wanted[choosing]))
        since += 1
        if loss < best:
            best, kept, since = loss, copy.deepcopy(network), 0
        if since >= _PATIENCE:
            break
    return kept
