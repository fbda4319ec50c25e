"""What sparse attention does to a model, against the folder that it was made from, where it reads fewer keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from export.contract.errors import InputError
from runtime_py.load import open_model
from runtime_py.system.finite import checked_logits
from runtime_py.text.generator import load_tokenizer
from toolchain.calibrate.text import read_text
from toolchain.evaluate.perplexity import compared, perplexity_of, windows_of
from toolchain.settings.sparsifying.sparsify import LongTextSettings
from toolchain.system.progress import Reporter

_ROWS = 256  # positions whose logits are held at once


def windows_to_measure(folder: Path, keys: int, asked: LongTextSettings, positions: int) -> np.ndarray:
    """int64 [n, window]. positions: what the model has. Raises InputError where the text is too short for one."""
    assert asked.text is not None
    window = asked.window or min(4 * keys, positions)
    if window > positions:
        raise InputError(f"--window {window} is longer than the model's {positions} positions")
    if window <= keys + 1:
        raise InputError(f"windows of {window} tokens hold nothing behind --keys {keys}; give fewer --keys")
    return windows_of(read_text(asked.text), load_tokenizer(folder), window, asked.limit or 2, str(asked.text))


def compare(folder: Path, dense: Path, windows: np.ndarray, first: int, quiet: bool = False) -> dict[str, Any]:
    """Perplexities, KL divergence and top-1 agreement over the positions from `first` on.

    folder: the sparse one; dense: the one that it was made from. windows: int64 [n, window].
    """
    sessions = [open_model(place)[0] for place in (folder, dense)]
    ours, theirs, divergence, agreed = (list[np.ndarray]() for _ in range(4))
    with Reporter("Comparing", len(windows), quiet) as report:
        for tokens in windows:
            states = [session.new_state() for session in sessions]
            for session, state in zip(sessions, states):
                session.forward(state, tokens[:first], last_only=True)
            for start in range(first, len(tokens) - 1, _ROWS):
                stop = min(start + _ROWS, len(tokens) - 1)
                found, wanted = (
                    checked_logits(session.forward(state, tokens[start:stop]))
                    for session, state in zip(sessions, states)
                )
                losses = compared(found, wanted, tokens[start + 1 : stop + 1])
                for kept, numbers in zip((ours, theirs, divergence), losses):
                    kept.append(numbers)
                agreed.append(found.argmax(axis=1) == wanted.argmax(axis=1))
            report.step("window")
    sparse_loss, dense_loss, kl = (float(np.concatenate(kept).mean()) for kept in (ours, theirs, divergence))
    return {
        "perplexity": perplexity_of(sparse_loss),
        "dense_perplexity": perplexity_of(dense_loss),
        "ratio": perplexity_of(sparse_loss - dense_loss),
        "kl": kl,
        "top1_agreement": float(np.concatenate(agreed).mean()),
        "tokens": sum(map(len, agreed)),
        "window": int(windows.shape[1]),
    }
