"""Perplexity, KL divergence and top-1 agreement of a model on a text.

The text is tokenized whole and cut into windows of `window` tokens, each evaluated alone. Windows that follow one
another score their last window - 1 positions. With a stride they overlap, and each scores only what no earlier one has:
every position but those of the first window has at least window - stride tokens before it.

A model is a model folder (through runtime_py) or a Hugging Face folder (float32, through transformers).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tokenizers import Tokenizer

from export.contract.errors import InputError
from runtime_py.system.finite import checked_logits
from runtime_py.text.tokenizing import encode
from toolchain.system.progress import Reporter


class Scorer(Protocol):
    """Anything that gives logits for one token window."""

    vocab_size: int

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """int64 [T] -> float32 [T, vocabulary]; position t predicts token t + 1."""


@dataclass(frozen=True)
class EvalResult:
    """kl and top1_agreement are None without a reference model.

    A perplexity beyond 1.8e308 (a mean of more than 709.78 nats) is infinite; so are the mean and the KL divergence
    where a model gives a token of the text the probability zero.
    """

    perplexity: float
    stderr: float  # standard error of the perplexity, from the spread of window means
    nats_per_token: float
    tokens: int  # scored positions
    windows: int
    window: int
    stride: int | None = None  # tokens between the starts of windows; None: they do not overlap
    reference_perplexity: float | None = None
    kl: float | None = None  # mean KL(reference || model) per position, nats
    kl_stderr: float | None = None
    top1_agreement: float | None = None  # share of positions where both pick the same most likely token

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class FolderScorer:
    """A model folder run by runtime_py."""

    def __init__(
        self, folder: Path, activations: str = "int8", adapter: str = "", cache_bits: int = 16, bits: int | None = None
    ) -> None:
        from runtime_py.load import open_model
        from runtime_py.text.generator import context_length

        names = [adapter] if adapter else []
        self._session, _ = open_model(folder, activations, adapters=names, cache_bits=cache_bits, bits=bits)
        self._adapter = adapter
        self.vocab_size, self.context = self._session.vocab_size, context_length(folder)

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        state = self._session.new_state()
        self._session.adapt(state, self._adapter)
        return self._session.forward(state, tokens)


class HuggingFaceScorer:
    """A Hugging Face folder run in float32 by transformers, with the weights that would be exported."""

    def __init__(self, name: str) -> None:
        import torch

        from toolchain.calibrate.own_text import whole_model
        from toolchain.source.checkpoint import resolve
        from toolchain.source.heads import open_model

        source, spec = open_model(resolve(name))
        if not spec.causal:
            raise InputError(f"{name}: an encoder, which predicts no next token; there is no perplexity to measure")
        source.print_notes()
        self._torch, self._model = torch, whole_model(source)
        self.vocab_size, self.context = spec.vocab_size, spec.context_length

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        with self._torch.no_grad():
            ids = self._torch.from_numpy(np.asarray(tokens, np.int64)[None])
            return self._model(input_ids=ids, use_cache=False).logits[0].float().numpy()


def open_scorer(
    name: str, activations: str = "int8", adapter: str = "", cache_bits: int = 16, bits: int | None = None
) -> Scorer:
    """A model folder if it holds model.onnx (run with these activations), else a Hugging Face folder or hub name.

    adapter: of the model folder; "": none. cache_bits: of its cached keys and values. bits: at which its nested codes
    are read; None: all there are.
    """
    if (Path(name) / "model.onnx").exists():
        return FolderScorer(Path(name), activations, adapter, cache_bits, bits)
    if bits is not None:
        raise InputError(f"{name}: --bits needs a model folder made by `export --nested`")
    if cache_bits != 16:
        raise InputError(f"{name}: --cache-bits needs a model folder made by `export`")
    if adapter:
        raise InputError(f"{name}: --adapter needs a model folder made by `export`")
    return HuggingFaceScorer(name)


def windows_of(
    text: str, tokenizer: Tokenizer, window: int, limit: int | None, where: str, stride: int | None = None
) -> np.ndarray:
    """int64 [n, window], starting every `stride` tokens (default: every `window`).

    Raises InputError when the text is shorter than one window or the stride is longer.
    """
    if window < 2:
        raise InputError(f"--window must be 2 or more, not {window}")
    if stride is not None and not 1 <= stride < window:
        raise InputError(f"--stride must be 1 to {window - 1}, below the window of {window}; not {stride}")
    ids = np.asarray(encode(tokenizer, text, special=False).ids, dtype=np.int64)
    if ids.size < window:
        raise InputError(f"{where}: has {ids.size} tokens, one window needs {window}; give more text or --window")
    return np.lib.stride_tricks.sliding_window_view(ids, window)[:: stride or window][:limit].copy()


def evaluate(
    scorer: Scorer, windows: np.ndarray, reference: Scorer | None = None, quiet: bool = False, stride: int | None = None
) -> EvalResult:
    """Score all windows, which start `stride` tokens apart (None: they do not overlap).

    Raises InputError when reference and model disagree on the vocabulary, NotFiniteError when one gives logits that are
    no numbers.
    """
    new = [0 if stride is None or number == 0 else windows.shape[1] - 1 - stride for number in range(len(windows))]
    return replace(evaluate_spans(scorer, list(zip(windows, new)), reference, quiet), stride=stride)


def evaluate_spans(
    scorer: Scorer, spans: Sequence[tuple[np.ndarray, int]], reference: Scorer | None = None, quiet: bool = False
) -> EvalResult:
    """Score token sequences, each alone: pairs of int64 [T] and the first position that counts.

    Position t predicts token t + 1, so (tokens, n - 1) scores what follows the first n tokens. `window` of the result
    is the length of the longest sequence. Raises as evaluate() does.
    """
    if reference is not None and reference.vocab_size != scorer.vocab_size:
        raise InputError(f"the reference has a vocabulary of {reference.vocab_size}, the model of {scorer.vocab_size}")
    largest = max(int(tokens.max()) for tokens, _ in spans)
    if largest >= scorer.vocab_size:
        raise InputError(f"the text has token {largest}, the model's vocabulary is {scorer.vocab_size}")
    losses, reference_losses, divergences, agreements, counts = [], [], [], [], []
    with Reporter("Evaluating", len(spans), quiet) as report:
        for tokens, first in spans:
            targets = tokens[first + 1 :]
            counts.append(len(targets))
            logits = checked_logits(scorer.logits(tokens)[first:-1])
            if reference is None:
                losses.append(_losses(logits, targets).mean())
            else:
                wanted = checked_logits(reference.logits(tokens)[first:-1], "the reference")
                ours, theirs, divergence = compared(logits, wanted, targets)
                losses.append(ours.mean())
                reference_losses.append(theirs.mean())
                divergences.append(divergence.mean())
                agreements.append((wanted.argmax(axis=1) == logits.argmax(axis=1)).mean())
            report.step("window")
    mean, error = _mean_and_error(losses, counts)
    kl, kl_error = _mean_and_error(divergences, counts) if divergences else (None, None)
    return EvalResult(
        perplexity=perplexity_of(mean),
        stderr=perplexity_of(mean) * error if error else 0.0,
        nats_per_token=mean,
        tokens=sum(counts),
        windows=len(spans),
        window=max(len(tokens) for tokens, _ in spans),
        reference_perplexity=(
            perplexity_of(float(np.average(reference_losses, weights=counts))) if reference_losses else None
        ),
        kl=kl,
        kl_stderr=kl_error,
        top1_agreement=float(np.average(agreements, weights=counts)) if agreements else None,
    )


def perplexity_of(nats: float) -> float:
    """e**nats, infinite beyond what a float holds."""
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf


_ROWS = 8  # positions worked on at a time: in float64, a vocabulary of 49,152 then stays in the cache


def _losses(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Nats that each target costs, float64 [T], from logits float32 [T, V] and targets int64 [T]."""
    found = [_normalized(logits[at : at + _ROWS]) for at in range(0, len(logits), _ROWS)]
    return np.concatenate([log_sum for *_, log_sum in found]) - logits[np.arange(len(targets)), targets]


def compared(logits: np.ndarray, wanted: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nats of the targets by the model and by the reference, and KL(reference || model): float64 [T] each.

    The KL is the mean difference of logits less the difference of their normalizers, all in float64, because a KL of
    1e-5 is a difference of numbers near 10. What is impossible for the reference adds nothing.
    """
    ours, theirs, divergences = [], [], []
    for at in range(0, len(logits), _ROWS):
        a, b = wanted[at : at + _ROWS], logits[at : at + _ROWS]
        weights, total, true_sum = _normalized(a)
        *_, model_sum = _normalized(b)
        with np.errstate(invalid="ignore"):  # -inf less -inf, where the weight is zero
            gaps = np.subtract(a, b, dtype=np.float64)
        gaps[weights == 0] = 0
        divergences.append(np.einsum("tv,tv->t", weights, gaps) / total - true_sum + model_sum)
        rows, tokens = np.arange(len(a)), targets[at : at + _ROWS]
        ours.append(model_sum - b[rows, tokens])
        theirs.append(true_sum - a[rows, tokens])
    return np.concatenate(ours), np.concatenate(theirs), np.concatenate(divergences)


def _normalized(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of logits [T, V]: exp(logits - top), its row sums [T] and the rows' log-sum-exp [T], all float64."""
    top = logits.max(axis=1, keepdims=True)
    weights = np.subtract(logits, top, dtype=np.float64)
    np.exp(weights, out=weights)
    total = weights.sum(axis=1)
    return weights, total, top[:, 0] + np.log(total)


def _mean_and_error(values: list[float], counts: list[int]) -> tuple[float, float]:
    """Mean over positions and its standard error from the spread of the windows' means (0 for one window: unknown).

    Windows that overlap are not independent; with a stride the error is too small by about sqrt(window / stride).
    """
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        return float(np.average(array, weights=counts)), math.inf
    error = float(array.std(ddof=1) / math.sqrt(array.size)) if array.size > 1 else 0.0
    return float(np.average(array, weights=counts)), error
