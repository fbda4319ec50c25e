"""Pruned vocabularies: counted texts are split and scored as before, every other text can still be written."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from export.artefacts.vocabulary import kept_tokens, pruned_config, pruned_tokenizer
from export.contract.errors import InputError
from export.files.access import read_json
from runtime_py.reference.session import Session
from runtime_py.text.generator import TextGenerator
from tests.conftest import _package
from toolchain.pipeline.pruned import PrunedCheckpoint


def test_ids_of_the_paper_s_example():
    """seed_systems.md section 14: ten rows, ids 0 3 3 7 in use."""
    data = {"model": {"type": "WordLevel", "vocab": {f"word{i}": i for i in range(10)}, "unk_token": "none"}}
    keep = kept_tokens(data, [0, 3, 3, 7], {})
    assert keep.tolist() == [0, 3, 7]
    assert pruned_tokenizer(data, keep)["model"]["vocab"] == {"word0": 0, "word3": 1, "word7": 2}


def test_configurations_follow():
    config = {"vocab_size": 10, "eos_token_id": [7, 3], "pad_token_id": 9, "bos_token_id": None,
              "suppress_tokens": [1, 3],
              "bad_words_ids": [[3, 7], [1, 3], [[0]]],
              "added_tokens_decoder": {"3": {}, "4": {}}, "hidden_size": 3}  # fmt: skip
    assert pruned_config(config, np.asarray([0, 3, 7])) == {
        "vocab_size": 3, "eos_token_id": [2, 1], "pad_token_id": 9, "bos_token_id": None, "suppress_tokens": [1],
        "bad_words_ids": [[1, 2]],
        "added_tokens_decoder": {"1": {}}, "hidden_size": 3,
    }  # fmt: skip


def trained(kind: str, text: str) -> Tokenizer:
    lines = text.split("\n")
    if kind == "byte-level BPE":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=["<end>"], initial_alphabet=alphabet)
    elif kind == "WordPiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=700, special_tokens=["[UNK]", "[CLS]", "[SEP]"])
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=700, special_tokens=["<unk>"], unk_token="<unk>")
    tokenizer.train_from_iterator(lines, trainer)
    if kind == "WordPiece":
        tokenizer.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return tokenizer


@pytest.mark.parametrize("kind", ["byte-level BPE", "WordPiece", "Unigram"])
def test_every_kind_of_tokenizer(kind, demo_text):
    text = demo_text.read_text()[:60_000]
    full = trained(kind, text)
    data = json.loads(full.to_str())
    for part in (text[:2000], text[30_000:45_000], "A cat."):
        keep = kept_tokens(data, full.encode(part).ids, {})
        small = Tokenizer.from_str(json.dumps(pruned_tokenizer(data, keep)))
        assert small.get_vocab_size() == len(keep) < full.get_vocab_size()
        assert keep[small.encode(part).ids].tolist() == full.encode(part).ids
        other = text[50_000:]  # nothing new becomes unknown, and it is written back the same
        unknown = [t.token_to_id("[UNK]" if kind == "WordPiece" else "<unk>") for t in (small, full)]
        assert sum(i == unknown[0] for i in small.encode(other).ids) == sum(
            i == unknown[1] for i in full.encode(other).ids
        )
        if kind != "WordPiece":
            assert small.decode(small.encode(other).ids) == full.decode(full.encode(other).ids)


@pytest.fixture(scope="module", params=["demo_checkpoint", "wide_checkpoint"])
def pruned(request, demo_text, tmp_path_factory):
    checkpoint, scratch = request.getfixturevalue(request.param), tmp_path_factory.mktemp("pruned")
    (scratch / "staged").mkdir()
    text = demo_text.read_text()[:3000]
    small = PrunedCheckpoint(checkpoint, text, "text.txt", scratch / "staged")
    return checkpoint, small, _package(small, scratch / "model"), text


def test_logits_are_the_kept_rows_of_the_whole_model(pruned, request, tmp_path):
    checkpoint, small, folder, text = pruned
    whole = _package(checkpoint, tmp_path / "whole")
    a, b = Session(whole), Session(folder)
    old, new = TextGenerator(whole).encode(text[:300]), TextGenerator(folder).encode(text[:300])
    assert small.keep[new].tolist() == old
    expected, found = a.forward(a.new_state(), old), b.forward(b.new_state(), new)
    np.testing.assert_array_equal(found, expected[:, small.keep])
    kept, all_of = len(small.keep), checkpoint.config["vocab_size"]
    assert small.manifest["vocabulary"] == {"kept": kept, "of": all_of, "text": "text.txt"}
    sizes = [(path / "model.onnx.data").stat().st_size for path in (folder, whole)]
    width = checkpoint.config["hidden_size"]
    assert sizes[0] <= sizes[1] - (all_of - kept) * width + 4096  # 8 bits a weight; both files are padded
    config = read_json(folder / "config.json")
    assert config["vocab_size"] == kept == read_json(folder / "genai_config.json")["model"]["vocab_size"]


def test_on_the_command_line(demo_checkpoint, tmp_path):
    (tmp_path / "text.txt").write_text("Once upon a time there was a cat.")
    command = [sys.executable, "-m", "toolchain"]
    options = [
        str(demo_checkpoint.folder),
        "-o",
        str(tmp_path / "out"),
        "--vocabulary-text",
        str(tmp_path / "text.txt"),
    ]
    done = subprocess.run([*command, "package", *options], capture_output=True, text=True)
    assert done.returncode == 0 and "of 1536 tokens kept" in done.stderr, done.stderr
    told = subprocess.run(
        [*command, "run", str(tmp_path / "out"), "--prompt", "Once upon a time", "--max-tokens", "20"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert told.returncode == 0 and told.stdout.startswith("Once upon a time") and len(told.stdout) > 25


def test_what_cannot_be_pruned_is_said(demo_checkpoint):
    with pytest.raises(InputError, match="vocabulary of type Char cannot be pruned"):
        kept_tokens({"model": {"type": "Char", "vocab": {}}}, [], {})
    with pytest.raises(InputError, match="has no vocabulary"):
        kept_tokens({"model": {"type": "BPE", "vocab": 3}}, [], {})
    with pytest.raises(InputError, match="merge that is not of two"):
        kept_tokens({"model": {"type": "BPE", "vocab": {"ab": 0}, "merges": ["ab"]}}, [], {})
    record = demo_checkpoint.records["model.embed_tokens"]
    pruned = PrunedCheckpoint.__new__(PrunedCheckpoint)
    pruned.keep = np.arange(3)
    from dataclasses import replace

    with pytest.raises(InputError, match="cannot be removed"):
        pruned._record(replace(record, layout={**record.layout, "rows_per_scale": 4}))
