"""A tokenizer with fewer tokens: which ones a text needs, and tokenizer.json and configs with the others removed.

Dynamic embedding pruning (arXiv 2309.08708), with what generation needs beside it: every text can still be written,
because special tokens, bytes and single characters stay. A text that was counted is split as before, only under new
ids, in the order of the old ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from export.contract.errors import InputError

_LISTS = ("suppress_tokens", "begin_suppress_tokens", "stop_token_ids")


def kept_tokens(tokenizer: Mapping[str, Any], used: Iterable[int], config: Mapping[str, Any]) -> np.ndarray:
    """Ids that stay, int64 ascending: the used ones, those they are merged from, and what every text may need.

    Raises InputError when the tokenizer is of another kind than BPE, WordPiece, Unigram or WordLevel.
    """
    tokens = _tokens(tokenizer)
    ids = dict(tokens)
    keep = set(used) & set(ids.values())
    keep |= {int(added["id"]) for added in tokenizer.get("added_tokens", [])}
    keep |= {number for value in _named_ids(config) for number in value}
    keep |= {ids[token] for token in (_unknown(tokenizer),) if token in ids}
    model = tokenizer["model"]
    prefix = model.get("continuing_subword_prefix") or ""
    keep |= {number for token, number in tokens if len(token.removeprefix(prefix)) <= 1 or _is_byte(token)}
    if model["type"] == "BPE":
        merges = _merges(model)
        made = {left + right.removeprefix(prefix): [] for left, right in merges}  # type: ignore[var-annotated]
        for left, right in merges:
            made[left + right.removeprefix(prefix)].append((left, right))
        keep |= {number for token, number in tokens if token not in made}  # what merging starts from
        names = {number: token for token, number in tokens}
        waiting = [names[number] for number in keep if number in names]
        while waiting:
            for pair in made.get(waiting.pop(), ()):
                for part in pair:
                    if part in ids and ids[part] not in keep:
                        keep.add(ids[part])
                        waiting.append(part)
    return np.asarray(sorted(keep), np.int64)


def pruned_tokenizer(tokenizer: Mapping[str, Any], keep: np.ndarray) -> dict[str, Any]:
    """tokenizer.json with the tokens `keep` under the ids 0, 1, ..."""
    new = {int(old): i for i, old in enumerate(keep)}
    model = dict(tokenizer["model"])
    if model["type"] == "Unigram":
        model["vocab"] = [model["vocab"][int(old)] for old in keep]
        if model.get("unk_id") is not None:
            model["unk_id"] = new[model["unk_id"]]
    else:
        model["vocab"] = {token: new[number] for token, number in model["vocab"].items() if number in new}
    if model["type"] == "BPE":
        prefix, vocabulary = model.get("continuing_subword_prefix") or "", model["vocab"]
        parts = _merges(model)
        model["merges"] = [
            merge
            for merge, (left, right) in zip(model["merges"], parts)
            if {left, right, left + right.removeprefix(prefix)} <= set(vocabulary)
        ]
    added = [{**token, "id": new[token["id"]]} for token in tokenizer.get("added_tokens", [])]
    return {
        **tokenizer,
        "model": model,
        "added_tokens": added,
        "post_processor": _renumbered(tokenizer.get("post_processor"), new),
    }


def pruned_config(config: Mapping[str, Any], keep: np.ndarray) -> dict[str, Any]:
    """config.json or generation_config.json with the ids of its tokens, and vocab_size, made to fit."""
    new = {int(old): i for i, old in enumerate(keep)}
    out = dict(config)
    for name, value in config.items():
        if name.endswith("_token_id") and isinstance(value, int) and not isinstance(value, bool):
            out[name] = new.get(value, value)  # one outside the vocabulary stays outside
        elif (name.endswith("_token_id") or name in _LISTS) and isinstance(value, list):
            out[name] = [new[i] for i in value if i in new]
        elif name == "bad_words_ids" and isinstance(value, list):
            words = [
                [new.get(i) if isinstance(i, int) else None for i in word] for word in value if isinstance(word, list)
            ]
            out[name] = [word for word in words if None not in word] or None  # one that lost a token cannot come
        elif name == "added_tokens_decoder" and isinstance(value, dict):
            out[name] = {str(new[int(i)]): token for i, token in value.items() if int(i) in new}
    if "vocab_size" in config:
        out["vocab_size"] = len(keep)
    return out


def _tokens(tokenizer: Mapping[str, Any]) -> list[tuple[str, int]]:
    """(token, id) of the model's vocabulary."""
    try:
        kind, vocabulary = tokenizer["model"]["type"], tokenizer["model"]["vocab"]
        if kind == "Unigram":
            return [(str(piece), i) for i, (piece, _) in enumerate(vocabulary)]
        if kind in ("BPE", "WordPiece", "WordLevel"):
            return [(str(token), int(number)) for token, number in vocabulary.items()]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError("tokenizer.json: has no vocabulary that can be read") from None
    raise InputError(f"tokenizer.json: a vocabulary of type {kind} cannot be pruned; BPE, WordPiece, Unigram can")


def _merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model.get("merges", [])]
    if any(len(pair) != 2 for pair in pairs):
        raise InputError("tokenizer.json: has a merge that is not of two tokens")
    return pairs  # type: ignore[return-value]


def _unknown(tokenizer: Mapping[str, Any]) -> str | None:
    model = tokenizer["model"]
    if model["type"] == "Unigram" and model.get("unk_id") is not None:
        return str(model["vocab"][model["unk_id"]][0])
    return model.get("unk_token")


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _named_ids(config: Mapping[str, Any]) -> list[list[int]]:
    """Ids that a configuration speaks of, where they lie inside its vocabulary."""
    size = config.get("vocab_size") or 0
    found = [v if isinstance(v, list) else [v] for name, v in config.items() if name.endswith("_token_id")]
    return [[i for i in ids if type(i) is int and 0 <= i < size] for ids in found]


def _renumbered(processor: Any, new: Mapping[int, int]) -> Any:
    """A post-processor with its token ids replaced: templates, sequences of them, and BERT's and RoBERTa's own."""
    if not isinstance(processor, dict):
        return processor
    out = dict(processor)
    if isinstance(out.get("special_tokens"), dict):
        out["special_tokens"] = {
            name: {**token, "ids": [new[i] for i in token["ids"]]} for name, token in out["special_tokens"].items()
        }
    for name in ("sep", "cls"):
        if isinstance(out.get(name), list):
            out[name] = [out[name][0], new[out[name][1]]]
    if isinstance(out.get("processors"), list):
        out["processors"] = [_renumbered(part, new) for part in out["processors"]]
    return out
