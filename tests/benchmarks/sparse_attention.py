"""Sparse attention against dense attention: `python -m tests.benchmarks.sparse_attention FOLDER --text FILE`.

FOLDER is a model folder. For each number of keys a folder is made by `sparsify`. Speed: behind the same text of --depth
tokens all folders take turns at decoding some tokens, and the median round counts, as a ratio to all keys; the prompt
is timed on the way. With --threads 1 it is processor time, which other work disturbs less. Quality: `sparsify`'s own
comparison, over the second half of windows of --window tokens.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

from export.artefacts.reader import read_graph
from export.contract.pages import Pages
from runtime_py.engine.engine import Engine
from runtime_py.text.generator import load_tokenizer
from toolchain.calibrate.text import read_text
from toolchain.evaluate.perplexity import windows_of
from toolchain.sparsify.folder import write_sparse_folder
from toolchain.sparsify.quality import compare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--keys", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--dense", type=int, nargs="*", default=[], help="layers that stay dense")
    parser.add_argument("--depth", type=int, default=7900)
    parser.add_argument("--window", type=int, default=4096)
    parser.add_argument("--windows", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=4, help="decoded in a round")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--no-speed", dest="speed", action="store_false")
    parser.add_argument("--no-quality", dest="quality", action="store_false")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folders = [given.folder]
        for keys in given.keys:
            folder = Path(place) / str(keys)
            folder.mkdir()
            write_sparse_folder(given.folder, folder, Pages(-(-keys // 16)), given.dense)
            folders.append(folder)
        names = ["all", *(str(keys) for keys in given.keys)]
        if given.quality:
            _quality(given, folders, names)
        if given.speed:
            _speed(given, folders, names)


def _quality(given: argparse.Namespace, folders: list[Path], names: list[str]) -> None:
    tokenizer = load_tokenizer(given.folder)
    windows = windows_of(read_text(given.text), tokenizer, given.window, given.windows, str(given.text))
    print("| keys | share of the reads | perplexity / all keys | KL | top-1 |\n|---|---|---|---|---|")
    counted = np.arange(given.window // 2, given.window) + 1
    for name, folder in zip(names[1:], folders[1:]):
        found = compare(folder=folder, dense=given.folder, windows=windows, first=given.window // 2, quiet=True)
        reads = (np.minimum(counted, int(name)) + counted // 32).sum() / counted.sum()
        numbers = f"{found['ratio']:.4f} | {found['kl']:.4f} | {100 * found['top1_agreement']:.1f} %"
        print(f"| {name} | {100 * reads:.0f} % | {numbers} |", flush=True)


def _speed(given: argparse.Namespace, folders: list[Path], names: list[str]) -> None:
    clock = time.process_time if given.threads == 1 else time.perf_counter
    ids = np.array(load_tokenizer(given.folder).encode(read_text(given.text)[: 12 * given.depth]).ids[: given.depth])
    engines, states, prompts = [Engine(read_graph(folder), given.threads) for folder in folders], [], []
    for engine in engines:
        engine.forward(engine.new_state(), ids[:300], last_only=True)  # compiled
        state, start = engine.new_state(), clock()
        engine.forward(state, ids, last_only=True)
        prompts.append(clock() - start)
        states.append(state)
    rounds: list[list[float]] = [[] for _ in engines]
    for _ in range(given.rounds):
        for kept, engine, state in zip(rounds, engines, states):
            start = clock()
            for _ in range(given.tokens):
                engine.forward(state, [int(ids[0])], last_only=True)
            kept.append((clock() - start) / given.tokens)
    print(f"\n{given.depth} tokens before\n\n| keys | prompt, tokens/s | decode, tokens/s | ratio |\n|---|---|---|---|")
    for name, kept, prompt in zip(names, rounds, prompts):
        ratio = median(all_keys / own for all_keys, own in zip(rounds[0], kept))
        print(f"| {name} | {given.depth / prompt:.0f} | {1 / median(kept):.1f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
