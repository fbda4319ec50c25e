"""Tokenizers of every kind, made in memory: trained on a few lines, with decoders as published models have them."""

from __future__ import annotations

import json
from functools import cache

from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

LINES = [
    "Once upon a time there was a little girl who said: don't go, it's late! Is it?",
    "Grüße aus der Küche, naïve café. 世界 is the world.",
    "def f(x):\n    return {'a': x ** 2}\n\n\tend of the  line , or not .",
]
PIECES = [
    "😀",
    "👨‍👩‍👧‍👦",
    "🏳️‍🌈",
    "🇩🇪",
    "🇫🇷",
    "世",
    "界。",
    "안녕",
    "e\u0301",
    "n\u0303\u0323",
    "\u200d",
    "\ufeff",
    "\ufffd",
    " ",
    "  ",
    "\n",
]
PIECES += [
    "\t",
    "a",
    "the",
    " girl",
    "don't",
    " , ",
    "?",
    "é",
    "ß",
    "\x00",
    "▁",
    "Ġ",
    "##",
    "</w>",
    "<s>",
    "<tool>",
    "<0x41>",
    "<0xF0>",
]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]

texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=12).map("".join)


def _added(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.add_tokens(["<tool>", AddedToken("two words", normalized=False)])
    return tokenizer


def _byte_level(add_prefix_space: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    tokenizer.decoder = decoders.ByteLevel()
    return _added(tokenizer)


def _sentence_piece(decoder: decoders.Decoder, normalizer: normalizers.Normalizer | None) -> Tokenizer:
    """BPE as Llama-2, Mistral and Gemma have it: what has no piece becomes byte tokens."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(vocab_size=90, special_tokens=["<unk>"], limit_alphabet=60)
    trained.train_from_iterator([line.replace("世界", "").replace("\n", "") for line in LINES], trainer)
    data = json.loads(trained.to_str())
    vocabulary = data["model"]["vocab"]
    vocabulary.update({name: len(vocabulary) + i for i, name in enumerate(BYTES)})
    data["model"] |= {"byte_fallback": True, "fuse_unk": True}
    tokenizer = Tokenizer.from_str(json.dumps(data))
    tokenizer.normalizer, tokenizer.decoder = normalizer or trained.normalizer, decoder
    return _added(tokenizer)


def _unigram(byte_fallback: bool, decoder: decoders.Decoder) -> Tokenizer:
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(
        LINES, trainers.UnigramTrainer(vocab_size=80, unk_token="<unk>", special_tokens=["<unk>"])
    )
    data = json.loads(trained.to_str())
    if byte_fallback:
        data["model"]["vocab"] += [[name, -20.0] for name in BYTES]
        data["model"]["byte_fallback"] = True
    tokenizer = Tokenizer.from_str(json.dumps(data))
    tokenizer.decoder = decoder
    return _added(tokenizer)


def _word_piece(cleanup: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(LINES, trainers.WordPieceTrainer(vocab_size=120, special_tokens=["[UNK]", "[CLS]"]))
    tokenizer.decoder = decoders.WordPiece(cleanup=cleanup)
    return _added(tokenizer)


def _word_ends() -> Tokenizer:
    """The first GPT's: `</w>` ends a word."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>"], end_of_word_suffix="</w>")
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.decoder = decoders.BPEDecoder()
    return _added(tokenizer)


def _words(decoder: decoders.Decoder | None) -> Tokenizer:
    """Whole words, and a decoder that is unusual for them."""
    words = ["<unk>", "<pad>", "|", "a", "ab", "b!", "!", " ", "▁x", "<0xC3>", "<0xA9>", "é", "x▁y", "ba", "!!"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if decoder is not None:
        tokenizer.decoder = decoder
    return _added(tokenizer)


_SPACES = decoders.Replace("▁", " ")
_FALLBACK, _FUSE = decoders.ByteFallback(), decoders.Fuse()
_MAKERS = {
    "byte-level": lambda: _byte_level(False),
    "byte-level-prefix": lambda: _byte_level(True),
    "llama": lambda: _sentence_piece(
        decoders.Sequence([_SPACES, _FALLBACK, _FUSE, decoders.Strip(" ", 1, 0)]),
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
    ),
    "gemma": lambda: _sentence_piece(decoders.Sequence([_SPACES, _FALLBACK, _FUSE]), None),
    "fallback-metaspace": lambda: _sentence_piece(decoders.Sequence([_FALLBACK, decoders.Metaspace()]), None),
    "fallback-strip": lambda: _sentence_piece(
        decoders.Sequence([decoders.Sequence([_SPACES, _FALLBACK]), decoders.Strip(" ", 1, 0), _FUSE]), None
    ),
    "unigram": lambda: _unigram(False, decoders.Metaspace()),
    "unigram-never": lambda: _unigram(False, decoders.Metaspace(prepend_scheme="never")),
    "unigram-fallback": lambda: _unigram(True, decoders.Sequence([_FALLBACK, decoders.Metaspace()])),
    "unigram-llama": lambda: _unigram(True, decoders.Sequence([_SPACES, _FALLBACK, _FUSE, decoders.Strip(" ", 1, 0)])),
    "word-piece": lambda: _word_piece(False),
    "word-piece-cleanup": lambda: _word_piece(True),
    "word-ends": _word_ends,
    "no-decoder": lambda: _words(None),
    "fused-replace": lambda: _words(decoders.Sequence([_FALLBACK, _FUSE, decoders.Replace("ab!", "<>"), _SPACES])),
    "fused-metaspace": lambda: _words(decoders.Sequence([_FUSE, decoders.Metaspace(), decoders.BPEDecoder("b!")])),
    "fused-expression": lambda: _words(decoders.Sequence([_SPACES, _FUSE, decoders.Replace(Regex("a+b|!$"), "-")])),
    "ctc": lambda: _words(decoders.CTC()),
}
KINDS = tuple(_MAKERS)


@cache
def small_tokenizer(kind: str) -> Tokenizer:
    """The tokenizer of one of KINDS."""
    return _MAKERS[kind]()


@st.composite
def token_ids(draw: st.DrawFn, kind: str) -> list[int]:
    """Ids of random texts, random ids, and runs of byte tokens with broken ones among them."""
    tokenizer = small_tokenizer(kind)
    size = tokenizer.get_vocab_size()
    names = [*BYTES, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    single = [token for token in map(tokenizer.token_to_id, names) if token is not None]
    parts = [texts.map(lambda text: tokenizer.encode(text).ids), st.lists(st.integers(0, size + 1), max_size=6)]
    if single:
        parts.append(st.lists(st.sampled_from(single), max_size=6))
        parts.append(texts.map(lambda text: _as_bytes(tokenizer, text)))
    return [token for ids in draw(st.lists(st.one_of(parts), max_size=5)) for token in ids]


def _as_bytes(tokenizer: Tokenizer, text: str) -> list[int]:
    """The text in byte tokens; those that the vocabulary lacks are left out."""
    found = (tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in text.encode("utf-8", "replace"))
    return [token for token in found if token is not None]
