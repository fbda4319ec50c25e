"""Streaming text equals the text decoded at once, and ends before stop strings."""

from __future__ import annotations

import os
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders

from runtime_py.text.decoder_stages import _ALPHABET, _FusedStrip, _Waiting, stages
from runtime_py.text.stream import TextStream
from tests.conftest import DEMO, shared
from tests.runtime_py.text.small_tokenizers import KINDS, small_tokenizer, token_ids

TEXT = "Grüße, 世界! \U0001f600 naïve — “quoted” text\n\n  two  spaces, ends here."


def tokenizers():
    yield Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    for name in ("models/stories260K", "models/scribe-6M", "tokenizers/gpt2"):
        yield Tokenizer.from_file(str(shared(name) / "tokenizer.json"))


@pytest.mark.parametrize("cut", [0, 1, 3, 9])
def test_the_streamed_text_is_the_decoded_text(cut):
    for tokenizer in tokenizers():
        ids = tokenizer.encode(TEXT).ids
        stream = TextStream(tokenizer, ids[:cut])
        text = "".join(stream.push(token) for token in ids[cut:]) + stream.flush()
        if not cut:  # a cut may split a character
            assert text == tokenizer.decode(ids)
        assert tokenizer.decode(ids).endswith(text.lstrip("\ufffd")[-20:])


@given(
    st.text(st.sampled_from("abc é世"), max_size=40),
    st.lists(st.text(st.sampled_from("abc é"), min_size=1, max_size=4)),
)
def test_the_stream_ends_where_the_first_stop_string_begins(text, stops):
    tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    ids = tokenizer.encode(text).ids
    whole = tokenizer.decode(ids)
    stream, shown, used = TextStream(tokenizer, (), stops), "", 0
    for token in ids:
        shown += stream.push(token)
        used += 1
        if stream.stopped:
            break
    shown += stream.flush()
    so_far = tokenizer.decode(ids[:used])
    places = [p for p in (so_far.find(stop) for stop in stops) if p >= 0]
    assert stream.stopped == bool(places)
    assert shown == (so_far[: min(places)] if places else whole)


def test_text_that_may_become_a_stop_string_is_not_shown_before_it_is_decided():
    tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    stream = TextStream(tokenizer, (), ["###END"])
    pieces = [stream.push(token) for token in tokenizer.encode("one ## two ###EN").ids]
    assert "".join(pieces) + stream.flush() == "one ## two ###EN"
    assert not "".join(pieces).endswith("#")


def answer_text(tokenizer: Tokenizer, prompt: list[int], answer: list[int]) -> str:
    """What the decoding of both has beyond the characters that the prompt's decoding begins with, too."""
    whole, before = tokenizer.decode(prompt + answer), tokenizer.decode(prompt)
    return whole[len(os.path.commonprefix([whole, before])) :]  # noqa: RUF071 (of texts, not paths)


def streamed(stream: TextStream, ids: list[int]) -> list[str]:
    """The pieces of the tokens, up to the one that a stop string ends in, then what was held back."""
    pieces = []
    for token in ids:
        if not stream.stopped:
            pieces.append(stream.push(token))
    return [*pieces, stream.flush()]


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=80)
def test_pieces_joined_are_the_decoding_of_all_ids_for_any_cut(kind, data):
    tokenizer, ids = small_tokenizer(kind), data.draw(token_ids(kind))
    cut = data.draw(st.integers(0, len(ids)))
    pieces = streamed(TextStream(tokenizer, ids[:cut]), ids[cut:])
    assert "".join(pieces) == answer_text(tokenizer, ids[:cut], ids[cut:])
    for i in range(len(ids) - cut):  # what is out is never taken back
        before = tokenizer.decode([*ids[: cut + i + 1], tokenizer.token_to_id("<tool>")])
        assert "".join(pieces[: i + 1]) in before


def settled(tokenizer: Tokenizer, prompt: list[int], answer: list[int]) -> str:
    """The text so far without the U+FFFD at its end that further bytes could make a character of."""
    text = answer_text(tokenizer, prompt, answer)
    kept = text.rstrip("\ufffd")
    if kept == text:
        return text
    names = {byte: name for name, byte in _ALPHABET.items()}
    tokens = [
        tokenizer.token_to_id(name) for b in (0x80, 0x90, 0xA0, 0xA9, 0xBF) for name in (f"<0x{b:02X}>", names[b])
    ]
    later = [[token] * n for token in tokens if token is not None for n in (1, 2, 3)]
    ends = [answer_text(tokenizer, prompt, answer + more) for more in later]
    while len(kept) < len(text) and all(end[len(kept) : len(kept) + 1] == "\ufffd" for end in ends):
        kept += "\ufffd"
    return kept


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=60)
def test_a_stop_string_ends_the_answer_at_the_first_token_that_completes_it(kind, data):
    tokenizer, ids = small_tokenizer(kind), data.draw(token_ids(kind))
    cut = data.draw(st.integers(0, len(ids)))
    prompt, answer = ids[:cut], ids[cut:]
    whole = answer_text(tokenizer, prompt, answer)
    inner = st.integers(0, len(whole)).flatmap(lambda i: st.integers(i, i + 6).map(lambda j: whole[i:j]))
    stops = data.draw(st.lists(inner | st.sampled_from(["😀", "\n", "世界", "é", " a", "\ufffd"]), max_size=3))
    stream = TextStream(tokenizer, prompt, stops)
    shown = "".join(streamed(stream, answer))

    waits = any(isinstance(stage, _Waiting) for stage in stages(tokenizer.decoder))
    steps = [] if waits else [settled(tokenizer, prompt, answer[: i + 1]) for i in range(len(answer))]
    for text in [*steps, whole]:
        found = [text.find(stop) for stop in stops if stop and stop in text]
        if found:
            assert stream.stopped and shown == text[: min(found)]
            return
    assert not stream.stopped and shown == whole


@pytest.mark.parametrize("kind", ["llama", "gemma", "unigram-fallback"])
@pytest.mark.parametrize("stop", ["😀", "👍🏽", "\n\n", "b 😀", "。"])
def test_a_stop_string_of_byte_tokens_ends_the_answer_with_its_last_byte(kind, stop):
    tokenizer = small_tokenizer(kind)
    prompt, text = tokenizer.encode("So").ids, " ab 😀 👍🏽 \n\n 。"
    answer = tokenizer.encode("So" + text).ids[len(prompt) :]
    assert tokenizer.decode(prompt + answer) == "So" + text
    stream, used, shown = TextStream(tokenizer, prompt, [stop]), 0, ""
    while not stream.stopped:
        shown += stream.push(answer[used])
        used += 1
    assert shown == text[: text.index(stop)]
    assert stop not in tokenizer.decode(prompt + answer[: used - 1])
    assert stop in tokenizer.decode(prompt + answer[:used])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("ctc", "fused-expression")])
def test_whole_words_do_not_wait(kind):
    tokenizer = small_tokenizer(kind)
    ids = [tokenizer.token_to_id("<tool>")] * 5
    pieces = streamed(TextStream(tokenizer, ids[:1]), ids[1:])
    assert all("<tool>" in piece for piece in pieces[1:4])  # a word's end is a space or nothing, so one token waits


def test_a_stop_string_of_a_broken_byte_ends_the_answer_at_that_byte():
    """No later byte can mend a byte that begins no character, so what follows does not decide which string is first."""
    tokenizer = small_tokenizer("byte-level-prefix")
    answer = [tokenizer.token_to_id(token) for token in "ĠðŁĺĢ¡!"]
    assert tokenizer.decode(answer) == " 😀\ufffd!"
    stream = TextStream(tokenizer, [], [" 😀\ufffd!", "\ufffd"])
    pieces = [stream.push(token) for token in answer[:6]]
    assert stream.stopped and pieces == [""] * 5 + [" 😀"]


def test_broken_bytes_are_shown_when_no_later_byte_can_mend_them():
    tokenizer = small_tokenizer("llama")
    byte = [tokenizer.token_to_id(f"<0x{i:02X}>") for i in range(256)]
    stream = TextStream(tokenizer, tokenizer.encode("So").ids)
    assert [stream.push(byte[i]) for i in (0xF0, 0x9F, 0x41, 0x42, 0xC3)] == ["", "", "\ufffd" * 3, "\ufffd", "\ufffd"]
    assert stream.push(tokenizer.token_to_id("a")) == "a"


@pytest.mark.parametrize("kind", ["llama", "byte-level"])
@pytest.mark.parametrize("bytes_", [b"\xff", b"\xf0", b"\n", "é😀".encode(), b"\xed\xa0"])
def test_endless_bytes_cost_the_same_for_each_token(kind, bytes_):
    """Decoding everything again for each of 10,000 tokens would take ten times the limit."""
    tokenizer = small_tokenizer(kind)
    names = {byte: name for name, byte in _ALPHABET.items()}
    ids = [tokenizer.token_to_id(names[b] if kind == "byte-level" else f"<0x{b:02X}>") for b in bytes_]
    ids = ids * (10_000 // len(ids))
    start = time.process_time()
    pieces = streamed(TextStream(tokenizer, [ids[0]], ["never there", "😀!"]), ids[1:])
    assert time.process_time() - start < 5
    assert "".join(pieces) == answer_text(tokenizer, ids[:1], ids[1:])
    if bytes_ == b"\xff":
        assert all(pieces[:-1])


@given(st.text("!a", max_size=5), st.text("!a", max_size=5), st.integers(0, 3), st.integers(0, 3), st.integers(1, 4))
def test_strip_on_fused_text_cuts_both_ends(before, after, start, stop, size):
    text = f"{before}-{after}"  # the library panics where nothing is left
    stage = _FusedStrip("!", start, stop)
    parts = [part for i in range(0, len(text), size) for part in stage.push([text[i : i + size]])]
    assert "".join(parts + stage.end()) == decoders.Strip("!", start, stop).decode([text])


@pytest.mark.parametrize(
    ("kind", "tokens", "expected"),
    [
        ("llama", ["a", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>", "t"], [0, 1, 1, 1, 1, 2]),
        ("llama", ["<0x41>", "<0xC3>", "<0xA9>", "<0x42>", "a"], [0, 1, 1, 2, 3]),
        ("llama", ["<0x6D>", "<0xDE>", "a", "<0xFF>", "<0xFF>", "a"], [0, 1, 2, 3, 4, 5]),
        ("byte-level", ["a", "ð", "Ł", "a", "Ã", "©", "b"], [0, 1, 1, 2, 3, 3, 4]),
    ],
)
def test_places_of_tokens(kind, tokens, expected):
    tokenizer = small_tokenizer(kind)
    stream = TextStream(tokenizer, [tokenizer.token_to_id("<tool>")])
    assert [stream.push_placed(tokenizer.token_to_id(token))[1] for token in tokens] == expected
