"""Log probabilities name tokens by their own bytes: joined they are the text, and no alternative is lost."""

from __future__ import annotations

import json

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from runtime_py.serving.answers.answer import Answer
from runtime_py.text.generation import Piece
from runtime_py.text.stream import TextStream
from runtime_py.text.token_bytes import TokenBytes
from tests.runtime_py.text.small_tokenizers import BYTES, KINDS, small_tokenizer, token_ids
from tests.runtime_py.text.test_stream import answer_text

# Where a decoder works on several tokens' text at once (Strip on whole byte runs, too), no token has bytes of its own.
TOGETHER = ("ctc", "fused-expression", "fused-replace", "fused-metaspace", "fallback-strip")
LOCAL = [kind for kind in KINDS if kind not in TOGETHER]


def plain(kind: str, ids: list[int]) -> list[int]:
    """Without special tokens, which the text skips, and ids without a token."""
    tokenizer = small_tokenizer(kind)
    return [token for token in ids if tokenizer.decode([token, token, token])]


@pytest.mark.parametrize("kind", LOCAL)
@given(data=st.data())
@settings(max_examples=80)
def test_the_bytes_of_an_answers_tokens_joined_are_its_text(kind, data):
    tokenizer = small_tokenizer(kind)
    prompt, answer = [tokenizer.token_to_id("<tool>")], plain(kind, data.draw(token_ids(kind)))
    joined, text = b"".join(map(TokenBytes(tokenizer).of, answer)), answer_text(tokenizer, prompt, answer)
    if kind == "word-ends":  # its last token has no space
        joined, text = joined.rstrip(b" "), text.rstrip(" ")
    if any(tokenizer.id_to_token(token) in BYTES for token in answer):
        assume(_is_text(joined))  # a broken run is U+FFFD in the text
        assume("▁" not in joined.decode())  # spelled in bytes, Metaspace makes it a space
    assert joined.decode(errors="replace") == text


@pytest.mark.parametrize(
    ("kind", "token", "expected"),
    [
        ("llama", "<0xF0>", b"\xf0"),
        ("llama", "<0x0A>", b"\n"),
        ("llama", "▁the", b" the"),
        ("llama", "<s>", b"<s>"),
        ("llama", "<unk>", b"<unk>"),
        ("gemma", "▁▁", b"  "),
        ("gemma", "two words", b"two words"),
        ("fallback-metaspace", "▁a", b" a"),
        ("unigram", "▁", b" "),
        ("unigram-llama", "<0xFF>", b"\xff"),
        ("byte-level", "Ġ", b" "),
        ("byte-level", "Ċ", b"\n"),
        ("byte-level", "ð", b"\xf0"),
        ("byte-level", "two words", b"two words"),
        ("word-piece", "##e", b"e"),
        ("word-piece", "the", b" the"),
        ("word-piece-cleanup", "!", b"!"),
        ("word-ends", "the</w>", b"the "),
        ("no-decoder", "ab", b" ab"),
    ],
)
def test_the_bytes_of_tokens(kind, token, expected):
    tokenizer = small_tokenizer(kind)
    if tokenizer.token_to_id(token) is None:
        tokenizer = Tokenizer.from_str(tokenizer.to_str())
        tokenizer.add_tokens([AddedToken(token, normalized=False)])
    assert TokenBytes(tokenizer).of(tokenizer.token_to_id(token)) == expected


def test_an_id_without_a_token_has_no_bytes():
    assert TokenBytes(small_tokenizer("llama")).of(99_999) == b""


def pieces_of(tokenizer: Tokenizer, prompt: list[int], answer: list[int], others: list[list[int]]) -> list[Piece]:
    """What a generation of these tokens gives; the likeliest is the generated one."""
    stream, pieces = TextStream(tokenizer, prompt), []
    for token, rest in zip(answer, others):
        alternatives = tuple((t, -0.5 - i) for i, t in enumerate(dict.fromkeys([token, *rest])))
        text, offset = stream.push_placed(token)
        pieces.append(Piece(token, text, -0.5, alternatives, offset))
    return pieces


def logprobs_of(tokenizer: Tokenizer, pieces: list[Piece], chat: bool, size: int) -> list[dict]:
    """As a client reads them from chunks of `size` tokens."""
    answer = Answer("m", chat, 1, tokenizer, True)
    chunks = [answer.chunk(pieces[i : i + size], "", None) for i in range(0, len(pieces), size)]
    return [json.loads(chunk.removeprefix(b"data: "))["choices"][0]["logprobs"] for chunk in chunks]


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=40)
def test_no_alternative_is_lost_and_offsets_are_where_tokens_begin(kind, data):
    tokenizer = small_tokenizer(kind)
    prompt, answer = [tokenizer.token_to_id("<tool>")], data.draw(token_ids(kind))
    some = st.lists(st.integers(0, tokenizer.get_vocab_size() + 2), max_size=20)
    pieces = pieces_of(tokenizer, prompt, answer, data.draw(st.lists(some, min_size=len(answer), max_size=len(answer))))
    size, own = data.draw(st.integers(1, 4)), TokenBytes(tokenizer)

    entries = [entry for found in logprobs_of(tokenizer, pieces, True, size) for entry in found["content"]]
    assert [bytes(entry["bytes"]) for entry in entries] == [own.of(token) for token in answer]
    for piece, entry in zip(pieces, entries):
        found = [(bytes(other["bytes"]), other["logprob"]) for other in entry["top_logprobs"]]
        assert found == [(own.of(token), logprob) for token, logprob in piece.alternatives]
        assert all(bytes(e["bytes"]).decode(errors="replace") == e["token"] for e in [entry, *entry["top_logprobs"]])

    parts = logprobs_of(tokenizer, pieces, False, size)
    tokens, tops, offsets = ([x for p in parts for x in p[n]] for n in ("tokens", "top_logprobs", "text_offset"))
    for piece, token, top in zip(pieces, tokens, tops):
        assert len(top) == len(piece.alternatives) and list(top.values()) == [p for _, p in piece.alternatives]
        assert top[token] == piece.logprob
        assert token == own.of(piece.token).decode() if _is_text(own.of(piece.token)) else token.startswith("bytes:")
    assert offsets == sorted(piece.offset for piece in pieces)
    if kind in LOCAL and kind != "word-ends":  # the space after a word is between two tokens there
        text = answer_text(tokenizer, prompt, answer)
        for token, offset in zip(answer, offsets):
            data = own.of(token)
            if [token] == plain(kind, [token]) and _is_text(data) and tokenizer.id_to_token(token) not in BYTES:
                assert text[offset:].startswith(data.decode())


def _is_text(data: bytes) -> bool:
    return data.decode(errors="ignore").encode() == data


def test_names_of_tokens_that_are_no_text_or_share_their_text():
    tokenizer = Tokenizer.from_str(small_tokenizer("llama").to_str())
    tokenizer.add_tokens([AddedToken("token_id:5", normalized=False)])
    a, byte_a, f0, literal = (tokenizer.token_to_id(t) for t in ("a", "<0x61>", "<0xF0>", "token_id:5"))
    for token, expected in [(a, {"a", f"token_id:{byte_a}"}), (byte_a, {f"token_id:{a}", "a"})]:
        (piece,) = pieces_of(tokenizer, [], [token], [[a, byte_a, f0, literal]])
        (found,) = logprobs_of(tokenizer, [piece], False, 1)
        assert set(found["top_logprobs"][0]) == expected | {"bytes:\\xf0", "token_id:5"}
        assert found["tokens"] == ["a"] and found["top_logprobs"][0]["a"] == -0.5
