"""Streaming text equals the text decoded at once, and ends before stop strings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from runtime_py.text_stream import TextStream
from tests.conftest import DEMO, shared

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
