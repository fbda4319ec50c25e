"""A schedule of widths against all bits: quality over the answer, tokens a second, bytes a token.

python -m tests.benchmarks.schedule OUT --text FILE --schedule prefill=4,0=4,64=3,256=2 --schedule 0=2 ...

The answer is the text itself: of each window the first tokens are the prompt, the others are computed one by one behind
it, at the width of their step. Perplexity and the divergence to all bits are those of the answer's tokens. A schedule
may be `learned` where `athena-export schedule` has made one.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from export.files.access import read_text
from runtime_py.load import open_model
from runtime_py.text.generator import load_tokenizer
from runtime_py.text.tokenizing import encode
from runtime_py.widths.learned import LEARNED
from runtime_py.widths.runner import Scheduled
from runtime_py.widths.schedule import Schedule


def answers(runner: Scheduled, window: np.ndarray, prompt: int) -> tuple[np.ndarray, list[int], float]:
    """Log probabilities float32 [answer, vocabulary], the widths of the single tokens, and the seconds they took."""
    state = runner.new_state()
    rows, widths = [runner.forward(state, window[:prompt], last_only=True)[-1]], []
    start = time.perf_counter()
    for token in window[prompt:-1]:
        widths.append(runner.width_of(state))
        rows.append(runner.forward(state, [int(token)], last_only=True)[-1])
    seconds = time.perf_counter() - start
    logits = np.array(rows, np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)), widths, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--schedule", action="append", required=True)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--answer", type=int, default=192)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--threads", type=int)
    asked = parser.parse_args()
    ids = np.asarray(encode(load_tokenizer(asked.folder), read_text(asked.text, 1 << 28), special=False).ids, np.int64)
    size = asked.prompt + asked.answer
    starts = np.linspace(0, ids.size - size, asked.windows).astype(int)
    windows = [ids[start : start + size] for start in starts]
    schedules = {text: LEARNED if text == LEARNED else Schedule.read(text) for text in asked.schedule}
    widest = max((one.prefill for one in schedules.values() if isinstance(one, Schedule)), default=4)
    base, found = [], []
    for text in [f"0={widest}", *asked.schedule]:
        runner, _ = open_model(asked.folder, bits=schedules.get(text) or Schedule.read(text), threads=asked.threads)
        assert isinstance(runner, Scheduled)
        loss, divergence, seconds, moved, count = 0.0, 0.0, 0.0, 0, 0
        for i, window in enumerate(windows):
            own, widths, took = answers(runner, window, asked.prompt)
            if len(base) < len(windows):
                base.append(own)
            right = window[asked.prompt :]
            loss -= own[np.arange(len(right)), right].sum()
            divergence += (np.exp(base[i]) * (base[i] - own)).sum()
            seconds, count = seconds + took, count + len(widths)
            moved += sum(runner.bytes_of(width) for width in widths)
        tokens = asked.answer * len(windows)
        found.append((text, np.exp(loss / tokens), divergence / tokens, count / seconds, moved / count))
    print("| schedule | perplexity of the answer | KL to all bits | tokens/s | weights read, MB a token |")
    print("|---|---|---|---|---|")
    for text, perplexity, divergence, rate, moved in found:
        print(f"| `{text}` | {perplexity:.3f} | {divergence:.4f} | {rate:.0f} | {moved / 1e6:.2f} |")


if __name__ == "__main__":
    main()
