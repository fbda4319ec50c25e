"""Perplexity, KL divergence and top-1 agreement of a model on a text.

The text is tokenized whole and cut into consecutive windows of `window` tokens, each evaluated alone; the last
window - 1 positions of each are scored. A model is a model folder (through runtime_py) or a Hugging Face folder
(float32, through transformers).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tokenizers import Tokenizer

from export.errors import InputError
from toolchain.progress import Reporter


class Scorer(Protocol):
    """Anything that gives logits for one token window."""

    vocab_size: int

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """int64 [T] -> float32 [T, vocabulary]; position t predicts token t + 1."""


@dataclass(frozen=True)
class EvalResult:
    """kl and top1_agreement are None without a reference model."""

    perplexity: float
    stderr: float  # standard error of the perplexity, from the spread of window means
    nats_per_token: float
    tokens: int  # scored positions
    windows: int
    window: int
    reference_perplexity: float | None = None
    kl: float | None = None  # mean KL(reference || model) per position, nats
    kl_stderr: float | None = None
    top1_agreement: float | None = None  # share of positions where both pick the same most likely token

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class FolderScorer:
    """A model folder run by runtime_py."""

    def __init__(self, folder: Path, activations: str = "int8") -> None:
        from runtime_py.load import open_model

        self._session, _ = open_model(folder, activations)
        self.vocab_size = self._session.vocab_size

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        return self._session.forward(self._session.new_state(), tokens)


class HuggingFaceScorer:
    """A Hugging Face folder run in float32 by transformers. Weights come from safetensors only."""

    def __init__(self, name: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        from export.archs import model_spec
        from toolchain.source import SourceModel, resolve

        folder = resolve(name)
        source = SourceModel(folder)  # refuses pickles and broken shards with a clear line
        model_spec(source.config)
        logging.disable_progress_bar()
        self._torch = torch
        self._model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
        ).eval()
        self.vocab_size = int(source.config["vocab_size"])

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        with self._torch.no_grad():
            ids = self._torch.from_numpy(np.asarray(tokens, np.int64)[None])
            return self._model(input_ids=ids, use_cache=False).logits[0].float().numpy()


def open_scorer(name: str, activations: str = "int8") -> Scorer:
    """A model folder if it holds model.onnx (run with these activations), else a Hugging Face folder or hub name."""
    if (Path(name) / "model.onnx").exists():
        return FolderScorer(Path(name), activations)
    return HuggingFaceScorer(name)


def windows_of(text: str, tokenizer: Tokenizer, window: int, limit: int | None, where: str) -> np.ndarray:
    """int64 [n, window]. Raises InputError when the text is shorter than one window."""
    if window < 2:
        raise InputError(f"--window must be 2 or more, not {window}")
    ids = np.asarray(tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int64)
    count = ids.size // window
    if count == 0:
        raise InputError(f"{where}: has {ids.size} tokens, one window needs {window}; give more text or --window")
    count = min(count, limit) if limit else count
    return ids[: count * window].reshape(count, window)


def evaluate(scorer: Scorer, windows: np.ndarray, reference: Scorer | None = None, quiet: bool = False) -> EvalResult:
    """Score all windows. Raises InputError when reference and model disagree on the vocabulary."""
    if reference is not None and reference.vocab_size != scorer.vocab_size:
        raise InputError(f"the reference has a vocabulary of {reference.vocab_size}, the model of {scorer.vocab_size}")
    if int(windows.max()) >= scorer.vocab_size:
        raise InputError(f"the text has token {int(windows.max())}, the model's vocabulary is {scorer.vocab_size}")
    losses, reference_losses, divergences, agreements = [], [], [], []
    with Reporter("Evaluating", len(windows), quiet) as report:
        for tokens in windows:
            predicted = _log_softmax(scorer.logits(tokens)[:-1])
            rows = np.arange(len(tokens) - 1)
            losses.append(-predicted[rows, tokens[1:]].mean())
            if reference is not None:
                true = _log_softmax(reference.logits(tokens)[:-1])
                reference_losses.append(-true[rows, tokens[1:]].mean())
                divergences.append((np.exp(true) * (true - predicted)).sum(axis=1).mean())
                agreements.append((true.argmax(axis=1) == predicted.argmax(axis=1)).mean())
            report.step("window")
    mean, error = _mean_and_error(losses)
    kl, kl_error = _mean_and_error(divergences) if divergences else (None, None)
    return EvalResult(
        perplexity=math.exp(mean),
        stderr=math.exp(mean) * error,
        nats_per_token=mean,
        tokens=len(windows) * (windows.shape[1] - 1),
        windows=len(windows),
        window=windows.shape[1],
        reference_perplexity=math.exp(np.mean(reference_losses)) if reference_losses else None,
        kl=kl,
        kl_stderr=kl_error,
        top1_agreement=float(np.mean(agreements)) if agreements else None,
    )


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    """float64 [T, V]; float64 because a KL of 1e-5 is a difference of numbers near 10."""
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def _mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean over windows and its standard error (0 for a single window, where it is unknown)."""
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()), float(array.std(ddof=1) / math.sqrt(array.size)) if array.size > 1 else 0.0
