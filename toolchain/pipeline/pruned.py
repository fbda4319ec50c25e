"""A quantized checkpoint without the vocabulary rows that a text does not need (export/artefacts/vocabulary.py)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from export.artefacts.checkpoint import StoredTensors, TensorRecord
from export.artefacts.vocabulary import kept_tokens, pruned_config, pruned_tokenizer
from export.contract.errors import InputError
from export.files.access import read_json, write_json
from export.graph.archs import model_spec
from export.model_folder import copy_tokenizer
from runtime_py.text.tokenizing import encode
from toolchain.calibrate.text import load_tokenizer
from toolchain.pipeline.run import totals

_CONFIGS = ("config.json", "generation_config.json", "tokenizer_config.json")
_REPLACED = ("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "added_tokens.json")  # say the same again


class PrunedCheckpoint:
    """Looks like a quantized checkpoint to the exporter, with fewer rows in embedding and head."""

    def __init__(self, checkpoint: StoredTensors, text: str, source: str, folder: Path) -> None:
        """`folder` receives configs and tokenizer; `source` is the text's name, for athena.json.

        Raises InputError when the tokenizer or the matrices cannot be pruned.
        """
        self._inner, self.folder = checkpoint, folder
        spec = model_spec(checkpoint.config)
        tokenizer = load_tokenizer(checkpoint.folder)
        data = read_json(checkpoint.folder / "tokenizer.json")
        used = np.unique(np.asarray(encode(tokenizer, text, special=False).ids, np.int64))
        self.keep = kept_tokens(data, used.tolist(), checkpoint.config)
        self.keep = self.keep[self.keep < spec.vocab_size]
        padding = checkpoint.config.get("pad_token_id")
        if spec.positions_skip_padding and self.keep[padding] != padding:
            raise InputError(f"config.json: pad_token_id {padding} would move, and positions count from it")
        self._write_files(checkpoint, data)
        _check_tokenizer(tokenizer, load_tokenizer(folder), self.keep, text)
        self.config: dict[str, Any] = read_json(folder / "config.json")
        rows = {spec.embedding, f"{spec.head}.bias", *([spec.head] if spec.head and not spec.tied_head else [])}
        self._rows = rows & set(checkpoint.records)
        self.records = {n: self._record(r) if n in self._rows else r for n, r in checkpoint.records.items()}
        records = list(self.records.values())
        self.manifest = {
            **checkpoint.manifest,
            "totals": totals(records, model_spec(self.config)),
            "tensors": [record.to_json() for record in records],
            "vocabulary": {"kept": len(self.keep), "of": spec.vocab_size, "text": source},
        }

    def has(self, name: str) -> bool:
        return name in self.records

    def tensor(self, record_name: str, suffix: str) -> np.ndarray:
        """One stored part of a record; only the kept rows of what has a row for each token."""
        values = self._inner.tensor(record_name, suffix)
        record = self._inner.records[record_name]
        return values[self.keep] if record_name in self._rows and len(values) == record.shape[0] else values

    def _record(self, record: TensorRecord) -> TensorRecord:
        shape = (len(self.keep), *record.shape[1:])
        if record.scheme != "codebook":
            return replace(record, shape=shape, bytes=record.bytes // record.shape[0] * shape[0])
        rows = record.shape[0]
        whole = (record.rows_per_codebook, record.rows_per_scale)
        if record.rank or record.scale_bits or any(n not in (1, rows) for n in whole):
            raise InputError(f"{record.name}: its rows share codebooks, scales or low-rank terms and cannot be removed")
        books, scales = (shape[0] if n == rows else 1 for n in whole)
        fresh = replace(record, shape=shape, rows_per_codebook=books, rows_per_scale=scales)
        return replace(fresh, bytes=fresh.layout().stored_bytes(np.dtype(record.scale_dtype or "float16").itemsize))

    def _write_files(self, checkpoint: StoredTensors, data: dict[str, Any]) -> None:
        copy_tokenizer(checkpoint.folder, self.folder)
        for name in _REPLACED:
            (self.folder / name).unlink(missing_ok=True)
        write_json(self.folder / "config.json", checkpoint.config)
        for name in _CONFIGS:
            if (self.folder / name).exists():
                write_json(self.folder / name, pruned_config(read_json(self.folder / name), self.keep))
        write_json(self.folder / "tokenizer.json", pruned_tokenizer(data, self.keep))


def _check_tokenizer(before: Tokenizer, after: Tokenizer, keep: np.ndarray, text: str) -> None:
    """The counted text must be split as before. Raises InputError where it is not."""
    expected, found = (np.asarray(encode(t, text).ids, np.int64) for t in (before, after))
    if not np.array_equal(keep[found], expected):
        raise InputError("tokenizer.json: its pruned form splits the text in another way; this tokenizer is refused")
