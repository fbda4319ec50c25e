"""Rows of other tools: each quantizes by itself, and its dequantized weights are scored in float32 as ours are.

Calibrated tools get WikiText-2's validation text, which is of the same source as the text that is scored: 128 sequences
of 512 tokens, as many as our default takes. Integer activations, which llama.cpp has as we do, are not in their
figures. Bytes of llama.cpp are its file's; of the others they are counted: codes, scales and zero points, embedding and
vectors in float16 (of hqq an 8-bit embedding as ours), tokenizer and configuration.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from tests.benchmarks.gguf_files import Tensors, read_gguf, write_gguf
from tests.benchmarks.real.quality import Yard
from tests.benchmarks.real.rows import CannotStore, Made, Row, bytes_of, words_of
from tests.benchmarks.running import Finished, ProgramFailed, finished

ROOT = Path(__file__).resolve().parents[3]
EMBEDDING = "model.embed_tokens.weight"
# What llama-quantize is asked for. Rows of 576 weights are no multiple of 256, the block of K- and IQ-types: it stores
# such matrices in a larger type, and only the down projections (rows of 1,536) in the one asked for. Q2_0 has groups of
# 64, which fit.
LLAMA_TYPES = (
    "Q8_0", "Q5_1", "Q5_0", "IQ4_NL", "Q4_0", "Q4_K_M", "IQ4_XS", "Q3_K_M", "IQ3_XXS", "Q2_K", "IQ2_XXS", "Q2_0",
)  # fmt: skip
SAME_GRID = "Q4_1"  # of the source's own weights: nothing would be lost, so nothing would be measured
SPLIT = "smollm"  # llama.cpp's name of how the tokenizer splits text
GROUPS = (64, 128)  # of auto-round, which fills up the last group of a row of 576
REFUSED = [
    "gptqmodel 7.7.0 was not tried: its metadata requires torch>=2.14.1, all else here is measured with torch 2.13.0.",
]


def tool(words: Sequence[object]) -> Finished:
    """Run a peer's tool; its last line is the reason where it fails."""
    try:
        return finished(words)
    except ProgramFailed as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise CannotStore(lines[-1][:300]) from None


def dequantized(yard: Yard, name: str, tensors: Tensors) -> str:
    """Write a copy of the source folder with these weights; its name in the benchmark's folder."""
    folder = yard.folder / "peers" / name
    shutil.copytree(yard.source, folder, dirs_exist_ok=True, copy_function=shutil.copyfile)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder.relative_to(yard.folder))


def text_bytes(yard: Yard) -> int:
    """Bytes of tokenizer, template and configuration, which every folder ships."""
    return bytes_of(yard.source) - (yard.source / "model.safetensors").stat().st_size


def llama_cpp(kind: str, tools: Path) -> Row:
    matrix = "llama-imatrix -m FOLDER/peers/source.gguf -f TEXT -o FOLDER/peers/imatrix.gguf -c 512 --chunks 128"
    quantize = f"llama-quantize --token-embedding-type q8_0 --imatrix FOLDER/peers/imatrix.gguf FOLDER/peers/source.gguf FOLDER/peers/{kind}.gguf {kind}"  # fmt: skip  # noqa: E501

    def make(yard: Yard) -> Made:
        peers = yard.folder / "peers"
        peers.mkdir(parents=True, exist_ok=True)
        if not (peers / "source.gguf").exists():
            write_gguf(yard.source, peers / "unfinished.gguf", SPLIT)
            (peers / "unfinished.gguf").replace(peers / "source.gguf")
        spent = peers / "imatrix.json"
        if not spent.exists():
            words = words_of(matrix, yard)
            once = tool([tools / words[0], *words[1:]])
            spent.write_text(json.dumps([once.seconds, once.processor_seconds, once.peak_bytes]))
        seconds, processor_seconds, peak = json.loads(spent.read_text())
        words = words_of(quantize, yard)
        done = tool([tools / words[0], *words[1:]])
        stored = peers / f"{kind}.gguf"
        try:
            tensors, bits = read_gguf(stored, yard.source)
        except (ValueError, NotImplementedError) as error:  # a type that the package does not know yet
            raise CannotStore(f"the package gguf does not read what llama-quantize wrote ({error})") from None
        return Made(
            dequantized(yard, kind, tensors), bits, stored.stat().st_size, seconds + done.seconds,
            processor_seconds + done.processor_seconds, max(peak, done.peak_bytes), stored_as(stored, kind),
        )  # fmt: skip

    return Row(f"llama.cpp {kind}", "llama.cpp", f"{matrix} && {quantize}", make)


def stored_as(path: Path, asked: str) -> str:
    """In which types a GGUF holds the blocks' matrices, where these are not all of the type asked for."""
    import gguf

    parts = [t for t in gguf.GGUFReader(str(path)).tensors if t.name.startswith("blk.") and len(t.shape) > 1]
    count = Counter(t.tensor_type.name for t in parts)
    return "" if set(count) == {asked} else ", ".join(f"{n} matrices {name}" for name, n in count.most_common())


def scripted(name: str, kind: str, label: str, python: Path, script: str, options: str) -> Row:
    """A row made by a script in an environment of its own, where the tool is installed.

    The script writes dequantized tensors to its last argument and prints {bits, bytes} of the blocks' matrices as its
    tool stores them. hqq stores no embedding; it gets ours, of 8 bits. The others leave it in float16.
    """
    command = f"python tests/benchmarks/{script} SOURCE {options} FOLDER/peers/{label}.safetensors"

    def make(yard: Yard) -> Made:
        (yard.folder / "peers").mkdir(parents=True, exist_ok=True)
        words = words_of(command, yard)
        done = tool([python, ROOT / words[1], *words[2:]])
        printed = json.loads(done.printed.strip().splitlines()[-1])
        path = Path(words[-1])
        tensors = {n: v.astype(np.float32) for n, v in load_file(yard.source / "model.safetensors").items()}
        tensors |= load_file(path)
        path.unlink()
        rows, columns = tensors[EMBEDDING].shape
        embedding = rows * (columns + 2) if kind == "hqq" else 2 * rows * columns
        if kind == "hqq":
            tensors[EMBEDDING] = eight_bits(tensors[EMBEDDING])
        vectors = sum(2 * value.size for value in tensors.values() if value.ndim == 1)
        size = printed["bytes"] + embedding + vectors + text_bytes(yard)
        folder = dequantized(yard, label, tensors)
        return Made(folder, printed["bits"], size, done.seconds, done.processor_seconds, done.peak_bytes)

    return Row(name, kind, command, make)


def eight_bits(weights: np.ndarray) -> np.ndarray:
    """A matrix [rows, columns] rounded to 8 bits with a scale for each row, as our exports hold the embedding."""
    from toolchain.quantize.methods import rtn
    from toolchain.settings.quantize import QuantizeSettings

    return rtn.quantize(weights, None, QuantizeSettings(method="rtn", bits=8)).dequantized()


def hqq(bits: int, python: Path) -> Row:
    return scripted(f"hqq {bits}, groups of 64", "hqq", f"hqq-{bits}", python, "real/tool_hqq.py", f"{bits} 64")


def auto_round(bits: int, group: int, python: Path) -> Row:
    name, options = f"auto-round {bits}, groups of {group}", f"TEXT 1 512 {bits} {group}"
    return scripted(name, "auto-round", f"auto-round-{bits}-{group}", python, "peer_auto_round.py", options)


def peer_rows(tools: Path | None, hqq_in: Path | None, round_in: Path | None) -> list[Row]:
    """Rows of the tools that are at hand: a folder of llama.cpp's programs, and a python for each of the others."""
    rows = [llama_cpp(kind, tools) for kind in LLAMA_TYPES] if tools else []
    if hqq_in:
        rows += [hqq(bits, hqq_in) for bits in (4, 3, 2)]
    if round_in:
        rows += [auto_round(bits, group, round_in) for group in GROUPS for bits in (4, 3)]
    return rows
