"""Hostile tokenizers: each ends in one line, at load or when the text comes, and nothing of Rust is shown."""

from __future__ import annotations

import base64
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from export.contract.errors import InputError
from runtime_py.text.generator import load_tokenizer
from runtime_py.text.tokenizer_limits import longest_prompt
from runtime_py.text.tokenizing import TooLong, encode, encode_prompt, most_bytes, parsed_tokenizer
from tests.conftest import DEMO

BASE = json.loads((DEMO / "tokenizer.json").read_text(encoding="utf-8"))


def replace(pattern, content, kind="String"):
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def sequence(*parts, name="normalizers"):
    return {"type": "Sequence", name: list(parts)}


def split(expression):
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}


def charsmap(text):
    """A charsmap whose trie is empty, with one text to map to."""
    return base64.b64encode((4096).to_bytes(4, "little") + bytes(4096) + text.encode() + b"\0").decode()


REFUSED = {
    "charsmap of no form": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "charsmap of a book": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": charsmap("a" * 3_000_000)}},
    "empty pattern": {"normalizer": replace("", "x")},
    "empty pattern, nested": {"normalizer": sequence(sequence(replace("", "x")))},
    "four in a row": {"normalizer": sequence(*[replace("a", "a" * 1000)] * 4)},
    "expressions in a row": {"normalizer": sequence(*[replace("[a-z]", "a" * 300, "Regex")] * 3)},
    "between all characters": {"normalizer": sequence(*[replace("(?=.)", "aa", "Regex")] * 11)},
    "empty expression": {"normalizer": sequence(*[replace("a*?", "aa", "Regex")] * 11)},
    "empty alternative": {"normalizer": sequence(*[replace("[^a]|", "aa", "Regex")] * 11)},
    "atomic": {"normalizer": sequence(*[replace("(?>[^a]|)", "aa", "Regex")] * 11)},
    "possessive": {"normalizer": sequence(*[replace("[^a]*+", "aa", "Regex")] * 11)},
    "prefixes": {"normalizer": sequence(*[{"type": "Prepend", "prepend": "x" * 300}] * 3)},
    "decoder": {"decoder": sequence(*[replace("a", "a" * 1000)] * 4, name="decoders")},
    "many stages": {"normalizer": sequence(*[{"type": "NFC"}] * 300)},
    "broken expression": {"normalizer": replace("(", "x", "Regex")},
    "a book as a token": {"model": {"type": "WordLevel", "vocab": {"a" * 20_000: 0}, "unk_token": "x"}},
    "long words": {"model": {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "a",
                             "max_input_chars_per_word": 10**9, "continuing_subword_prefix": "##"}},
    "deep": {"normalizer": json.loads('{"type":"Sequence","normalizers":[' * 300 + "]}" * 300)},
    "unknown stage": {"normalizer": {"type": "Shell", "command": "id"}},
}  # fmt: skip
FAILING = {
    "backtracking": ({"normalizer": replace("(a+)+$", "x", "Regex")}, "a" * 60 + "!"),
    "backtracking split": ({"pre_tokenizer": split("(a|aa)+$")}, "a" * 80 + "!"),
    "backtracking in a sequence": ({"pre_tokenizer": sequence(split("(.*a){20}c"), name="pretokenizers")}, "a" * 80),
    "no unknown word": ({"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "u"}}, "b"),
    "no unknown piece": ({"model": {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "u",
                                    "max_input_chars_per_word": 100, "continuing_subword_prefix": "##"}}, "b"),
    "empty unigram": ({"model": {"type": "Unigram", "vocab": [], "unk_id": None}}, "b"),
}  # fmt: skip


def changed(change):
    added = BASE["added_tokens"] if "model" not in change else []  # their ids are those of another vocabulary
    return json.dumps({**BASE, "added_tokens": added, "post_processor": None, **change})


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_text_may_be_given_to_is_refused_at_load(name, tmp_path, capfd):
    (tmp_path / "tokenizer.json").write_text(changed(REFUSED[name]))
    with pytest.raises(InputError, match=r"tokenizer\.json: "):
        load_tokenizer(tmp_path)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", FAILING)
def test_what_fails_over_a_text_is_one_line(name, capfd):
    change, text = FAILING[name]
    tokenizer = parsed_tokenizer(changed(change), "t")
    with pytest.raises(InputError, match="the tokenizer cannot encode this text"):
        encode(tokenizer, text)
    assert capfd.readouterr().err == ""


def test_what_takes_too_long_is_not_waited_for(monkeypatch):
    monkeypatch.setattr("runtime_py.text.tokenizing._SECONDS", 0.5)
    tokenizer = parsed_tokenizer(changed({"normalizer": replace("(a+)+c", "x", "Regex")}), "t")
    start = time.monotonic()
    with pytest.raises(InputError, match="takes longer than"):
        encode(tokenizer, ("a" * 20 + "b") * 100)
    assert time.monotonic() - start < 5


def test_texts_that_would_grow_are_weighed_first():
    tokenizer = parsed_tokenizer(changed({"normalizer": replace("a", "a" * 60_000)}), "t")
    with pytest.raises(InputError, match="may make"):
        encode(tokenizer, "b" * 100_000)
    with pytest.raises(TooLong):
        encode_prompt(tokenizer, "b" * 300)


@pytest.mark.parametrize(
    "change",
    [{}, {"normalizer": {"type": "NFC"}},
     {"normalizer": sequence({"type": "Prepend", "prepend": "▁"}, replace(" ", "▁"))},
     {"normalizer": replace(" {2,}", " ", "Regex")}, {"normalizer": {"type": "Precompiled",
      "precompiled_charsmap": charsmap("\ufdfa")}}, {"padding": {"strategy": {"Fixed": 2**40}, "direction": "Right",
      "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "x"}}],
    ids=["as it is", "NFC", "Prepend", "spaces", "charsmap", "endless padding"],
)  # fmt: skip
def test_usual_tokenizers_work(change):
    tokenizer = parsed_tokenizer(changed(change), "t")
    assert encode(tokenizer, "Hello  world").ids == Tokenizer.from_str(changed({**change, "padding": None})).encode(
        "Hello  world"
    ).ids  # fmt: skip


BOUNDED = {
    "bytes": {},
    "NFC": {"normalizer": {"type": "NFC"}},
    "NFKC": {"normalizer": {"type": "NFKC"}},
    "spaces become longer": {"normalizer": replace(" ", "▁")},
}


@settings(deadline=None)
@given(st.sampled_from(sorted(BOUNDED)), st.text(max_size=60), st.integers(1, 30))
def test_no_prompt_that_fits_is_refused_for_its_bytes(name, text, times):
    tokenizer = parsed_tokenizer(changed(BOUNDED[name]), "t")
    text *= times
    ids = tokenizer.encode(text).ids
    assert len(text.encode()) <= longest_prompt(tokenizer, max(len(ids), 1))


@pytest.mark.parametrize("text", ["각", "\U0001d400\u030a", "ﷺ", "\u1f82", "\u212a"])
def test_the_forms_that_shrink_most(text):
    for name in ("NFC", "NFKC"):
        tokenizer = parsed_tokenizer(changed(BOUNDED[name]), "t")
        long = "<|endoftext|>" + text.encode().decode() * 500
        assert len(long.encode()) <= longest_prompt(tokenizer, len(tokenizer.encode(long).ids))


@pytest.mark.parametrize(
    "change",
    [{"pre_tokenizer": sequence({"type": "WhitespaceSplit"}, name="pretokenizers")},
     {"normalizer": {"type": "Strip", "strip_left": True, "strip_right": True}},
     {"normalizer": replace("a", "")}, {"normalizer": replace("a+", "a", "Regex")},
     {"pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": False}},
     {"added_tokens": [{**BASE["added_tokens"][0], "rstrip": True}]}],
)  # fmt: skip
def test_where_text_can_vanish_only_memory_bounds_a_prompt(change):
    tokenizer = parsed_tokenizer(
        changed(change) if "added_tokens" not in change else json.dumps({**BASE, **change}), "t"
    )
    assert most_bytes(tokenizer, 1) == most_bytes(tokenizer) > 1_000_000
