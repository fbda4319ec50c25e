"""A written tokenizer gives the ids and special tokens of transformers' AutoTokenizer for the source folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from typer.testing import CliRunner

from export.contract.errors import InputError
from export.model_folder import copy_tokenizer
from runtime_py.chat.conversation import prompt_ids
from runtime_py.chat.template import open_template
from runtime_py.text.generator import load_tokenizer
from runtime_py.text.special_tokens import read_special_tokens
from tests.conftest import DEMO
from toolchain.calibrate import text as calibration
from toolchain.source.tokenizer import write_built_tokenizer

TEXTS = [
    "Hello world",
    " leading and  double spaces ",
    "line\n\nbreaks\tand tabs",
    "Grüße 世界 😀 e\u0301",
    "<s>[INST] a </s><|endoftext|> b <image> <|im_end|>",
    "don't 12345 UPPER lower",
    "",
]
CHAT = [{"role": "user", "content": "Hello <image> <s> world"}, {"role": "assistant", "content": "Yes</s>"}]
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token", "image_token", "x")
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}|"
    + "|".join(f"{{{{ {name} if {name} is defined else 'none' }}}}" for name in NAMES)
)
CORPUS = [
    "hello world the quick brown fox jumps over the lazy dog",
    "don't count 12345 upper lower breaks and tabs",
] * 20


def _json(path: Path, **values) -> None:
    path.write_text(json.dumps(values), encoding="utf-8")


def _byte_level(folder: Path) -> None:
    shutil.copyfile(DEMO / "tokenizer.json", folder / "tokenizer.json")


def _pieces(folder: Path, legacy: bool = False) -> None:
    """The Llama-2 kind: pieces with byte fallback, <s> put before a text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if legacy:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special[:3], show_progress=False)
    tokenizer.train_from_iterator([f"▁{line.replace(' ', '▁')}" for line in CORPUS], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    for byte in special[3:]:
        model["vocab"][byte] = len(model["vocab"])
    tokenizer.model = models.BPE(
        vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]],
        unk_token="<unk>", byte_fallback=True, fuse_unk=True,
    )  # fmt: skip
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def _words(folder: Path) -> None:
    """The BERT kind."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.save(str(folder / "tokenizer.json"))


def _without(folder: Path, part: str) -> None:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), part: None}))


def _split_up(folder: Path) -> None:
    """vocab.json and merges.txt instead of tokenizer.json."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    _json(folder / "vocab.json", **model["vocab"])
    merges = "\n".join(merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    (folder / "tokenizer.json").unlink()


def _sentencepiece(folder: Path) -> None:
    """tokenizer.model instead of tokenizer.json: a byte-fallback BPE in SentencePiece's own format."""
    from transformers.convert_slow_tokenizer import import_protobuf

    protobuf = import_protobuf()
    proto = protobuf.ModelProto()
    vocab = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    for piece, index in sorted(vocab.items(), key=lambda entry: entry[1]):
        kinds = {"<unk>": 2, "<s>": 3, "</s>": 3}
        kind = kinds.get(piece, 6 if piece.startswith("<0x") else 1)
        proto.pieces.add(piece=piece, score=-float(index), type=kind)
    proto.trainer_spec.model_type, proto.trainer_spec.byte_fallback = 2, True
    proto.trainer_spec.unk_id, proto.trainer_spec.bos_id, proto.trainer_spec.eos_id = 0, 1, 2
    proto.normalizer_spec.add_dummy_prefix, proto.normalizer_spec.remove_extra_whitespaces = True, False
    (folder / "tokenizer.model").write_bytes(proto.SerializeToString())
    (folder / "tokenizer.json").unlink()


END = {"content": "<|endoftext|>", "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
FAST = {"tokenizer_class": "PreTrainedTokenizerFast"}
LLAMA = {"tokenizer_class": "LlamaTokenizer"}
# name: (what makes tokenizer.json, changes to it, model type, tokenizer_config.json, special_tokens_map.json, others)
FOLDERS = {
    "nothing but tokenizer.json": (_byte_level, [], "llama", None, None, {}),
    "texts": (_byte_level, [], "llama", {**FAST, "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}, None, {}),
    "objects": (_byte_level, [], "llama", {**FAST, "bos_token": {"__type": "AddedToken", **END}}, None, {}),
    "only the map": (_byte_level, [], "llama", FAST, {"bos_token": END, "eos_token": "<|im_end|>"}, {}),
    "no config but the map": (_byte_level, [], "llama", None, {"bos_token": END, "pad_token": "<pad>"}, {}),
    "the map wins": (_byte_level, [], "llama", {**FAST, "bos_token": "<a>"}, {"bos_token": "<b>"}, {}),
    "the decoder silences the map": (
        _byte_level,
        [],
        "llama",
        {**FAST, "bos_token": "<|endoftext|>", "added_tokens_decoder": {"0": {**END, "special": True}}},
        {"bos_token": "<b>", "eos_token": "<c>"},
        {},
    ),
    "null in the map": (_byte_level, [], "llama", {**FAST, "bos_token": "<a>"}, {"bos_token": None}, {}),
    "null in the config": (
        _byte_level,
        [],
        "llama",
        {**FAST, "bos_token": None, "eos_token": "<|endoftext|>"},
        None,
        {},
    ),
    "extra tokens by name": (
        _byte_level,
        [],
        "llama",
        {**FAST, "extra_special_tokens": {"image_token": "<image>", "x": "<x>"}},
        None,
        {},
    ),
    "extra tokens by name in the map": (
        _byte_level,
        [],
        "llama",
        FAST,
        {"extra_special_tokens": {"image_token": "<image>", "x": "<x>"}},
        {},
    ),
    "extra tokens in both": (
        _byte_level,
        [],
        "llama",
        {**FAST, "extra_special_tokens": {"image_token": "<image>"}},
        {"extra_special_tokens": {"image_token": "<|im_end|>"}, "boi_token": "<boi>"},
        {},
    ),
    "an extra token called bos_token": (
        _byte_level,
        [],
        "llama",
        {**FAST, "bos_token": "<a>", "extra_special_tokens": {"bos_token": "<b>"}},
        None,
        {},
    ),
    "a token of the model's own": (_byte_level, [], "llama", {**FAST, "image_token": "<image>"}, None, {}),
    "a token of the model's own in both": (
        _byte_level,
        [],
        "llama",
        {**FAST, "image_token": "<image>"},
        {"image_token": "<|im_end|>"},
        {},
    ),
    "as saved by transformers": (
        _byte_level,
        [],
        "llama",
        {**FAST, "image_token": "<image>", "model_specific_special_tokens": {"image_token": "<image>"}},
        None,
        {},
    ),
    "extra tokens as a list": (
        _byte_level,
        [],
        "llama",
        {**FAST, "extra_special_tokens": ["<image>", "<x>"]},
        None,
        {},
    ),
    "additional tokens": (
        _byte_level,
        [],
        "llama",
        {**FAST, "additional_special_tokens": ["<image>", "<|im_end|>"]},
        None,
        {},
    ),
    "additional tokens in the map": (_byte_level, [], "llama", FAST, {"additional_special_tokens": ["<image>"]}, {}),
    "added_tokens.json": (_byte_level, [], "llama", FAST, None, {"added_tokens.json": {"<image>": 1536}}),
    "tokens in added_tokens_decoder only": (
        _byte_level,
        [],
        "llama",
        {**FAST, "added_tokens_decoder": {"1536": {**END, "content": "<image>", "special": True}}},
        None,
        {},
    ),
    "padding names a token": (
        _byte_level,
        [
            (
                "padding",
                {
                    "strategy": "BatchLongest",
                    "direction": "Left",
                    "pad_to_multiple_of": None,
                    "pad_id": 0,
                    "pad_type_id": 0,
                    "pad_token": "<|endoftext|>",
                },
            )
        ],
        "llama",
        FAST,
        None,
        {},
    ),
    "special tokens are split": (
        _byte_level,
        [],
        "llama",
        {**FAST, "bos_token": "<|endoftext|>", "split_special_tokens": True},
        None,
        {},
    ),
    "bos without a rule": (
        _byte_level,
        [],
        "llama",
        {**FAST, "bos_token": "<|endoftext|>", "add_bos_token": True},
        None,
        {},
    ),
    "the class of GPT-2": (_byte_level, [], "gpt2", {"tokenizer_class": "GPT2Tokenizer"}, None, {}),
    "the class of GPT-2, prefix": (
        _byte_level,
        [],
        "gpt2",
        {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True},
        None,
        {},
    ),
    "the class of Qwen2": (_byte_level, [], "qwen2", {"tokenizer_class": "Qwen2Tokenizer"}, None, {}),
    "the class of Qwen2 by the model": (_byte_level, [], "qwen2", None, None, {}),
    "the class of GPT-NeoX": (_byte_level, [], "gpt_neox", {"tokenizer_class": "GPTNeoXTokenizerFast"}, None, {}),
    "a class that nobody knows": (_byte_level, [], "llama", {"tokenizer_class": "NoSuchTokenizer"}, None, {}),
    "byte-level under Llama's class": (_byte_level, [], "llama", LLAMA, None, {}),
    "Llama's defaults": (_pieces, [], "llama", LLAMA, None, {}),
    "Llama's defaults and null": (_pieces, [], "llama", {**LLAMA, "bos_token": None}, None, {}),
    "Llama without bos": (_pieces, [], "llama", {**LLAMA, "add_bos_token": False}, None, {}),
    "Llama with eos": (_pieces, [], "llama", {**LLAMA, "add_eos_token": True}, None, {}),
    "Llama without a post-processor": (
        _pieces,
        [("post_processor", None)],
        "llama",
        {**LLAMA, "add_bos_token": True},
        None,
        {},
    ),
    "Llama, no prefix space": (_pieces, [], "llama", {**LLAMA, "add_prefix_space": False}, None, {}),
    "Llama, legacy": (_pieces, [], "llama", {**LLAMA, "legacy": True}, None, {}),
    "Llama, not legacy": (_pieces, [], "llama", {**LLAMA, "legacy": False}, None, {}),
    "Mistral": (_pieces, [], "mistral", LLAMA, {"bos_token": "<s>", "eos_token": "</s>"}, {}),
    "pieces without a class": (_pieces, [], "llama", FAST, None, {}),
    "Gemma's class over other pieces": (_pieces, [], "gemma2", {"tokenizer_class": "GemmaTokenizer"}, None, {}),
    "BERT": (_words, [], "bert", {"tokenizer_class": "BertTokenizer"}, None, {}),
    "BERT with capitals": (_words, [], "bert", {"tokenizer_class": "BertTokenizer", "do_lower_case": False}, None, {}),
    "BERT without a config": (_words, [], "bert", None, None, {}),
}
LEGACY_FILES = {
    "GPT-2 in two files": (_byte_level, _split_up, "gpt2", {"tokenizer_class": "GPT2Tokenizer"}),
    "GPT-2 in two files, bos": (
        _byte_level,
        _split_up,
        "gpt2",
        {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True},
    ),
    "Qwen2 in two files": (_byte_level, _split_up, "qwen2", {"tokenizer_class": "Qwen2Tokenizer"}),
    "Llama in SentencePiece": (_pieces, _sentencepiece, "llama", LLAMA),
    "Llama in SentencePiece, eos": (_pieces, _sentencepiece, "llama", {**LLAMA, "add_eos_token": True}),
    "Llama in SentencePiece, bos off": (_pieces, _sentencepiece, "llama", {**LLAMA, "add_bos_token": False}),
    "Llama in SentencePiece, an added token": (
        _pieces,
        _sentencepiece,
        "llama",
        {**LLAMA, "added_tokens_decoder": {"600": {**END, "content": "<image>"}}},
    ),
}


def _source(folder: Path, kind: str) -> Path:
    folder.mkdir()
    config: dict | None
    if kind in FOLDERS:
        make, changes, model, config, legacy, others = FOLDERS[kind]
        make(folder)
        path = folder / "tokenizer.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **dict(changes)}))
    else:
        make, change, model, config = LEGACY_FILES[kind]
        legacy, others = None, {}
        make(folder)
        change(folder)
    _json(folder / "config.json", model_type=model, vocab_size=2048, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    for name, values in {"tokenizer_config.json": config, "special_tokens_map.json": legacy, **others}.items():
        if values is not None:
            _json(folder / name, **values)
    return folder


def _written(source: Path, folder: Path) -> Path:
    folder.mkdir()
    shutil.copyfile(source / "config.json", folder / "config.json")
    copy_tokenizer(source, folder)
    write_built_tokenizer(source, folder)
    return folder


@pytest.mark.parametrize("kind", [*FOLDERS, *LEGACY_FILES])
def test_a_written_tokenizer_equals_transformers(kind, tmp_path):
    from transformers import AutoTokenizer

    source = _source(tmp_path / "source", kind)
    if (source / "tokenizer.model").exists():
        pytest.importorskip("sentencepiece", reason="transformers reads tokenizer.model with it")
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    written = _written(source, tmp_path / "written")
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before
    theirs, again = (AutoTokenizer.from_pretrained(folder) for folder in (source, written))
    ours, calibrating = load_tokenizer(written), calibration.load_tokenizer(source)
    assert read_special_tokens(written) == theirs.special_tokens_map == again.special_tokens_map
    for special in (True, False):
        for text in TEXTS:
            expected = theirs.encode(text, add_special_tokens=special)
            assert ours.encode(text, add_special_tokens=special).ids == expected
            assert calibrating.encode(text, add_special_tokens=special).ids == expected
            assert again.encode(text, add_special_tokens=special) == expected
    template = open_template(written)
    rendered = theirs.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert template.render(CHAT) == rendered
    expected = theirs.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False)
    assert prompt_ids(CHAT, template, ours) == expected
    template.close()


@pytest.mark.parametrize("kind", [k for k, f in FOLDERS.items() if f[0] is _byte_level and "class" not in k])
def test_special_tokens_of_an_older_folder_are_read_as_transformers_reads_them(kind, tmp_path):
    from transformers import AutoTokenizer

    source = _source(tmp_path / "source", kind)
    expected = AutoTokenizer.from_pretrained(source).special_tokens_map
    if kind == "padding names a token":  # only the tokenizers library looks there
        expected.pop("pad_token")
    assert read_special_tokens(source) == expected


def test_files_that_say_it_already_stay_as_they_are(tmp_path):
    written = _written(DEMO, tmp_path / "written")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (written / name).read_bytes() == (DEMO / name).read_bytes()


@pytest.mark.parametrize("auto_map", [["mine.Slow", "mine.Fast"], {"AutoTokenizer": ["mine.Slow", "mine.Fast"]}])
def test_code_of_the_folder_is_not_run(auto_map, tmp_path, capsys):
    source = _source(tmp_path / "source", "texts")
    (source / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Slow: pass\nclass Fast: pass\n")
    _json(source / "config.json", model_type="none_such", auto_map={"AutoConfig": "mine.Slow"})
    _json(source / "tokenizer_config.json", tokenizer_class="Mine", auto_map=auto_map, bos_token="<|endoftext|>")
    written = _written(source, tmp_path / "written")
    assert not (tmp_path / "ran").exists()
    assert "taken as they are: transformers cannot build" in capsys.readouterr().err
    assert read_special_tokens(written) == {"bos_token": "<|endoftext|>"}
    assert (
        load_tokenizer(written).encode(TEXTS[0]).ids
        == Tokenizer.from_file(str(DEMO / "tokenizer.json")).encode(TEXTS[0]).ids
    )


@pytest.mark.parametrize(
    ("model", "config", "tokens"),
    [
        ("gemma3_text", {"tokenizer_class": "GemmaTokenizer"}, {}),  # is built, but has no unknown token to encode with
        ("albert", {"tokenizer_class": "AlbertTokenizer"}, {}),
        ("llama", {**FAST, "bos_token": END}, {"bos_token": "<|endoftext|>"}),
        ("llama", {**FAST, "bos_token": 5, "eos_token": "<a>"}, {"eos_token": "<a>"}),
        ("llama", {"tokenizer_class": 5, "bos_token": "<a>"}, {"bos_token": "<a>"}),
        ("llama", {**FAST, "extra_special_tokens": {"image_token": END}}, {"image_token": "<|endoftext|>"}),
    ],
)
def test_what_transformers_refuses_is_taken_as_it_is_and_said(model, config, tokens, tmp_path, capsys):
    source = tmp_path / "source"
    source.mkdir()
    _byte_level(source)
    _json(source / "config.json", model_type=model, vocab_size=2048)
    _json(source / "tokenizer_config.json", **config)
    written = _written(source, tmp_path / "written")
    note = capsys.readouterr().err
    assert (
        note.startswith("[tokenizer files are taken as they are: transformers cannot build") and note.count("\n") == 1
    )
    assert read_special_tokens(written) == tokens
    assert (written / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert calibration.load_tokenizer(source).encode(TEXTS[3]).ids == load_tokenizer(DEMO).encode(TEXTS[3]).ids


def test_the_file_for_a_version_of_transformers_is_taken(tmp_path):
    from transformers import AutoTokenizer

    source = _source(tmp_path / "source", "texts")
    (source / "tokenizer.json").rename(source / "tokenizer.4.0.json")
    _pieces(source)
    _json(source / "tokenizer_config.json", **FAST, fast_tokenizer_files=["tokenizer.json", "tokenizer.4.0.json"])
    written = _written(source, tmp_path / "written")
    expected = [AutoTokenizer.from_pretrained(source).encode(text) for text in TEXTS]
    assert [load_tokenizer(written).encode(text).ids for text in TEXTS] == expected
    assert [AutoTokenizer.from_pretrained(written).encode(text) for text in TEXTS] == expected


@pytest.mark.parametrize(
    "files",
    [{}, {"vocab.json": "{}"}, {"tokenizer.model": "not one"}, {"tokenizer.json": "{"}, {"tokenizer.json": "[]"}],
)
def test_a_folder_without_a_usable_tokenizer_is_refused(files, tmp_path):
    _json(tmp_path / "config.json", model_type="llama")
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "written").mkdir()
    for attempt in (
        lambda: calibration.load_tokenizer(tmp_path),
        lambda: write_built_tokenizer(tmp_path, tmp_path / "written"),
    ):
        with pytest.raises(InputError, match=r"tokenizer.json: (this file is missing|not a readable)") as error:
            attempt()
        assert "\n" not in str(error.value)


def test_an_exported_folder_is_the_source_in_transformers(tmp_path):
    """Two vocabulary files, a class that knows its tokens, tokens in three places, named templates: all arrives."""
    from transformers import AutoTokenizer

    from toolchain.cli import app

    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(DEMO, source)
    _split_up(source)
    templates = {"default": TEMPLATE, "tool_use": "{{ image_token }}" + TEMPLATE}
    _json(
        source / "tokenizer_config.json",
        tokenizer_class="GPT2Tokenizer",
        add_bos_token=True,
        extra_special_tokens={"image_token": "e"},
        chat_template=[{"name": name, "template": text} for name, text in templates.items()],
    )
    _json(source / "special_tokens_map.json", pad_token="a")
    quick = ["--bits", "8", "--method", "rtn", "--sequences", "4", "--sequence-length", "32"]
    result = CliRunner().invoke(app, ["export", str(source), "-o", str(out), *quick])
    assert result.exit_code == 0, result.output
    theirs, again, template = *(AutoTokenizer.from_pretrained(folder) for folder in (source, out)), open_template(out)
    assert theirs.special_tokens_map == again.special_tokens_map == read_special_tokens(out)
    assert theirs.encode("Hello")[0] == theirs.bos_token_id  # the class puts it there
    for text in TEXTS:
        assert theirs.encode(text) == again.encode(text) == load_tokenizer(out).encode(text).ids
    for tools in (None, [{"type": "function"}]):
        expected = theirs.apply_chat_template(CHAT, tools=tools, add_generation_prompt=True, return_dict=False)
        assert again.apply_chat_template(CHAT, tools=tools, add_generation_prompt=True, return_dict=False) == expected
        assert prompt_ids(CHAT, template, load_tokenizer(out), {"tools": tools}) == expected
    template.close()
