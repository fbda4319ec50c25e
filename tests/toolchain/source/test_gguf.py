"""A GGUF file as the source is what transformers makes of it with `gguf_file=`: weights, logits, tokenizer, chat."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from export.contract.errors import InputError
from export.files.access import read_json
from tests.toolchain.source.gguf_models import FAMILIES, QUANTIZED, write_gguf
from toolchain.calibrate.own_text import whole_model
from toolchain.cli import app
from toolchain.numerics.experts import unpack_experts
from toolchain.pipeline.run import CalibrationChoice, quantize_model
from toolchain.settings.quantize import QuantizeSettings
from toolchain.source.checkpoint import SourceModel, resolve
from toolchain.source.heads import open_model

OTHERS = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S", "IQ1_M",
          "IQ4_NL", "IQ4_XS"]  # fmt: skip
CODES = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0"]
TEXTS = ["hello world", " hello  wor\n<s>ld</s>", "Grüße 世界 😀", ""]


def theirs(path: Path):
    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()


def opened(path: Path) -> SourceModel:
    return open_model(resolve(str(path)))[0]


def same_weights(source: SourceModel, model) -> None:
    state = unpack_experts(model).state_dict()
    assert set(source.parameters()) <= set(state)
    for name in source.parameters():
        assert torch.equal(source.tensor(name, tuple(state[name].shape)), state[name]), name
    assert all(source.has(name) or name == "lm_head.weight" for name in state)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", FAMILIES)
def test_families(tmp_path, architecture, tied):
    path = write_gguf(tmp_path / "m.gguf", architecture, lambda name: "Q4_0" if "ffn" in name else "F16", tied=tied)
    source, model = opened(path), theirs(path)
    same_weights(source, model)
    ids = torch.arange(24)[None] * 7 % source.config["vocab_size"]
    with torch.no_grad():
        assert torch.equal(whole_model(source)(ids).logits, model(ids).logits)


@pytest.mark.parametrize("title", sorted(QUANTIZED | set(OTHERS)))
def test_types(tmp_path, title):
    path = write_gguf(
        tmp_path / "m.gguf", type_of=lambda name: title, hidden_size=256, intermediate_size=256, head_dim=64
    )
    source, model = opened(path), theirs(path)
    same_weights(source, model)
    for name in source.parameters():
        kept = source.group_codes(name)
        assert (kept is not None) == (title in CODES and source.tensor(name).ndim == 2)
        if kept is not None:
            assert kept.codes.dtype == np.uint8 and int(kept.codes.max()) < 2**kept.bits
            assert np.array_equal(kept.weight(), source.tensor(name).numpy())


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_tokenizer_and_template_of_the_export(tmp_path, kind):
    path = write_gguf(tmp_path / "m.gguf", kind=kind)
    settings = QuantizeSettings(bits=4, method="rtn", sequences=2, sequence_length=16)
    text = tmp_path / "text.txt"
    text.write_text("hello world " * 100)
    quantize_model(str(path), tmp_path / "out", settings, CalibrationChoice(source=str(text)), quiet=True)
    ours = AutoTokenizer.from_pretrained(tmp_path / "out")
    expected = AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    for sample in TEXTS:
        for special in (True, False):
            ids = expected.encode(sample, add_special_tokens=special)
            assert ours.encode(sample, add_special_tokens=special) == ids
            assert ours.decode(ids) == expected.decode(ids)
    talk = [{"role": "user", "content": "hello"}]
    assert ours.apply_chat_template(talk, tokenize=False) == expected.apply_chat_template(talk, tokenize=False)
    assert (ours.bos_token, ours.eos_token) == (expected.bos_token, expected.eos_token)
    config = read_json(tmp_path / "out" / "config.json")
    assert config["eos_token_id"] == expected.eos_token_id and "quantization_config" not in config


def test_the_end_of_a_turn_ends_a_text(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", change=lambda writer: writer.add_eot_token_id(5))
    generation = read_json(resolve(str(path)) / "generation_config.json")
    assert generation["eos_token_id"] == [263, 5]


@pytest.mark.parametrize("given", [1, 2, 3])
def test_parts(tmp_path, given):
    whole = write_gguf(tmp_path / "whole.gguf", tied=False)
    write_gguf(tmp_path / "m.gguf", tied=False, parts=3)
    source = opened(tmp_path / f"m-{given:05d}-of-00003.gguf")
    same_weights(source, theirs(whole))
    (tmp_path / "m-00002-of-00003.gguf").rename(tmp_path / "elsewhere.gguf")
    with pytest.raises(InputError, match=r"m-00002-of-00003.gguf: this file is missing|elsewhere"):
        resolve(str(tmp_path / "m-00001-of-00003.gguf"))


def test_a_folder_with_one_model(tmp_path):
    write_gguf(tmp_path / "m.gguf", parts=2)
    assert opened(tmp_path).has("model.embed_tokens.weight")
    write_gguf(tmp_path / "b.gguf")
    with pytest.raises(InputError, match=r"several GGUF models \(b.gguf, m-00001-of-00002.gguf\)"):
        resolve(str(tmp_path))


def test_codes_of_a_changed_weight_are_not_the_stored_ones(tmp_path):
    from toolchain.source.transforms.folding import FoldedSource

    source = FoldedSource(opened(write_gguf(tmp_path / "m.gguf", type_of=lambda name: "Q4_0")))
    name = "model.layers.0.mlp.up_proj.weight"
    assert source.group_codes(name) is not None
    source.change(name, lambda weight: weight * 2)
    assert source.group_codes(name) is None


def edited(path: Path, *pairs: tuple[bytes, bytes], count: int = 1) -> Path:
    """The file with bytes replaced by as many others, where they stand first."""
    data = path.read_bytes()
    for old, new in pairs:
        assert old in data and len(old) == len(new)
        data = data.replace(old, new, count)
    path.write_bytes(data)
    return path


def number(value: int, size: int = 8) -> bytes:
    return value.to_bytes(size, "little")


def key(name: str) -> bytes:
    return number(len(name)) + name.encode()


HEADS = key("llama.attention.head_count") + number(4, 4)
TENSOR = key("blk.0.ffn_up.weight") + number(2, 4)  # then 2 lengths, type, offset
TOKENS = key("tokenizer.ggml.tokens") + number(9, 4) + number(8, 4)
SHAPE = TENSOR + number(32) + number(64)
HOSTILE = {
    "no GGUF": (lambda p: p.write_bytes(b"GGML" + p.read_bytes()[4:]), "not a GGUF file"),
    "nothing": (lambda p: p.write_bytes(b""), "not a GGUF file"),
    "a header": (lambda p: p.write_bytes(p.read_bytes()[:24]), "ends in the middle"),
    "version 1": (lambda p: edited(p, (b"GGUF" + number(3, 4), b"GGUF" + number(1, 4))), "version 1"),
    "big-endian": (lambda p: edited(p, (b"GGUF" + number(3, 4), b"GGUF" + number(3 << 24, 4))), "big-endian"),
    "many keys": (lambda p: p.write_bytes(p.read_bytes()[:16] + number(2**60) + p.read_bytes()[24:]), "metadata keys"),
    "many tensors": (
        lambda p: p.write_bytes(p.read_bytes()[:8] + number(2**60) + p.read_bytes()[16:]), "ends|name"),
    "a long array": (lambda p: edited(p, (TOKENS + number(264), TOKENS + number(2**60))), "entries; at most"),
    "an array past the end": (
        lambda p: edited(p, (TOKENS + number(264), TOKENS + number(1 << 20))), "ends in the middle"),
    "an array of arrays": (lambda p: edited(p, (TOKENS, TOKENS[:-4] + number(9, 4))), "array of arrays"),
    "an array of nothing known": (lambda p: edited(p, (TOKENS, TOKENS[:-4] + number(77, 4))), "unknown type"),
    "a key of nothing known": (lambda p: edited(p, (HEADS, HEADS[:-4] + number(13, 4))), "unknown type"),
    "a string past the end": (lambda p: edited(p, (key("llama"), number(2**62) + b"llama")), "ends in the middle"),
    "no text": (lambda p: edited(p, (b"{% for m", b"\xff\xfe for m")), "not text in UTF-8"),
    "a token that is no text": (lambda p: edited(p, (key("hello"), number(5) + b"he\xff\xfe\xfd")), "tokenizer"),
    "a name that is no text": (lambda p: edited(p, (b"blk.0.ffn_up.weight", b"blk.0.ffn_up.wei\xffht")), "UTF-8"),
    "a name with a line end": (lambda p: edited(p, (b"blk.0.ffn_up.weight", b"blk.0.ffn_up.wei\nht")), "not printable"),
    "a key twice": (lambda p: edited(p, (b"llama.context_length", b"llama.block_count\0\0\0")), "printable"),
    "a tensor twice": (lambda p: edited(p, (b"blk.0.ffn_up.weight", b"blk.1.ffn_up.weight")), "twice"),
    "many axes": (lambda p: edited(p, (TENSOR, TENSOR[:-4] + number(2**31, 4))), "dimensions"),
    "a huge axis": (lambda p: edited(p, (TENSOR + number(32), TENSOR + number(2**61))), "ends before|cannot have"),
    "an empty axis": (lambda p: edited(p, (TENSOR + number(32), TENSOR + number(0))), "cannot have"),
    "an unknown type": (
        lambda p: edited(p, (SHAPE + number(2, 4), SHAPE + number(99, 4))),
        "type that the package gguf does not know"),
    "a type without a rule": (
        lambda p: edited(p, (SHAPE + number(2, 4), SHAPE + number(24, 4))),
        "of type I8"),
    "another shape": (lambda p: edited(p, (SHAPE, TENSOR + number(64) + number(32))), "shape"),
    "half of it": (lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]), "ends"),
    "without its last byte": (lambda p: p.write_bytes(p.read_bytes().rstrip(b"\0")[:-1]), "ends before the data"),
    "another family": (lambda p: edited(p, (key("llama"), key("plamo"))), "plamo"),
    "a newer family": (lambda p: edited(p, (key("llama"), number(5) + b"\0lfm2")), "lfm2"),
    "no heads": (
        lambda p: edited(p, (HEADS, HEADS.replace(b"head_count", b"head_cousX"))), "llama.attention.head_count must"),
    "no heads at all": (
        lambda p: edited(p, (HEADS + number(4, 4), HEADS + number(0, 4))), "llama.attention.head_count must be"),
    "other heads": (lambda p: edited(p, (HEADS + number(4, 4), HEADS + number(3, 4))), "transformers|num_|shape"),
    "no tokenizer": (
        lambda p: edited(p, (b"ggml.tokens", b"ggml.tokenz")), "vocab|tokenizer"),
    "another tokenizer": (lambda p: edited(p, (key("gpt2"), key("rwkv"))), "tokenizer"),
    "a part of a model": (lambda p: p.rename(p.with_name("m-00002-of-00001.gguf")), "m.gguf"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_one_line(tmp_path, name):
    change, says = HOSTILE[name]
    path = write_gguf(tmp_path / "m.gguf", type_of=lambda name: "Q4_0")
    change(path)
    with pytest.raises(InputError, match=says) as refused:
        source = opened(path)
        for parameter in source.parameters():
            source.tensor(parameter)
    assert "\n" not in str(refused.value) and "m.gguf" in str(refused.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("title", ["F32", "F16", "Q8_0"])
def test_weights_that_are_not_finite(tmp_path, value, title):
    path = write_gguf(tmp_path / "m.gguf", type_of=lambda name: title)
    source = opened(path)
    tensor = source._weights.model.tensors["blk.0.ffn_up.weight"]
    data = bytearray(path.read_bytes())
    stored = np.array([value], np.float32 if title == "F32" else np.float16).tobytes()
    data[tensor.offset : tensor.offset + len(stored)] = stored
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"m.gguf: blk.0.ffn_up.weight holds NaN or infinite values"):
        source.tensor("model.layers.0.mlp.up_proj.weight")


def test_a_file_that_is_cut_while_it_is_read(tmp_path):
    path = write_gguf(tmp_path / "m.gguf")
    source = opened(path)
    path.write_bytes(path.read_bytes()[:10_000])
    with pytest.raises(InputError, match="shorter"):
        source.tensor("model.layers.1.mlp.down_proj.weight")


def test_a_weight_without_a_place(tmp_path):
    def change(writer):
        writer.add_tensor("blk.0.attn_q.bias", np.ones(32, np.float32))

    with pytest.raises(InputError, match=r"blk.0.attn_q.bias has no place in the llama model"):
        opened(write_gguf(tmp_path / "m.gguf", change=change))


def test_a_missing_weight(tmp_path):
    path = write_gguf(tmp_path / "m.gguf")
    edited(path, (b"blk.0.ffn_up.weight", b"rope_freqs.ffn_upXX"))
    with pytest.raises(InputError, match=r"m.gguf: the checkpoint has no tensor model.layers.0.mlp.up_proj.weight"):
        opened(path)


def test_a_name_that_only_looks_like_a_parameter(tmp_path):
    """transformers goes by the names of GGUF alone, and would leave it out."""

    def change(writer):
        writer.add_tensor("model.norm.weight", np.full(32, 7, np.float32))

    with pytest.raises(InputError, match="model.norm.weight .* is not known"):
        opened(write_gguf(tmp_path / "m.gguf", change=change))


def test_as_many_heads_of_keys_as_of_queries_where_nothing_is_said(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", num_key_value_heads=4)
    before = opened(path).tensor("model.layers.0.self_attn.k_proj.weight")
    edited(path, (b"llama.attention.head_count_kv", b"llama.attention.head_count_kx"))
    assert torch.equal(opened(path).tensor("model.layers.0.self_attn.k_proj.weight"), before)


def test_commands_take_it_wherever_they_take_a_source(tmp_path):
    (tmp_path / "m").mkdir()
    path, text = write_gguf(tmp_path / "m" / "m.gguf"), tmp_path / "text.txt"
    text.write_text("hello world " * 200)
    small = ["--calibration", text, "--sequences", 2, "--sequence-length", 16, "--bits", 4, "--method", "rtn"]
    assert "peak memory" in command("export", path, "-o", tmp_path / "out", "--dry-run", *small)
    command("quantize", path.parent, "-o", tmp_path / "out", *small)
    assert read_json(tmp_path / "out" / "athena.json")["source"]["name"] == "m"
    for name in (path, path.parent):
        options = ["--text", text, "--window", 16, "--limit", 3, "--json"]
        same = json.loads(command("eval", name, "--reference", path, *options))
        assert same["kl"] == 0 and same["perplexity"] == same["reference_perplexity"]


def command(*words: object) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_codes_of_an_expert_are_kept(tmp_path):
    source = opened(write_gguf(tmp_path / "m.gguf", "qwen3moe", lambda name: "Q4_0" if "exps" in name else "F32"))
    for layer, expert, matrix in ((0, 0, "gate"), (0, 2, "up"), (1, 1, "down")):
        name = f"model.layers.{layer}.mlp.experts.{expert}.{matrix}_proj.weight"
        kept = source.group_codes(name)
        assert kept is not None and np.array_equal(kept.weight(), source.tensor(name).numpy())


WRONG_EXPERTS = {
    "another width": ("qwen3moe", {"moe_intermediate_size": 64}, "", "the metadata ask for"),
    "another count": ("qwen3moe", {}, "qwen3moe.expert_count", "the metadata ask for 5 experts"),
    "more picks than experts": ("qwen3moe", {}, "qwen3moe.expert_used_count", "num_experts_per_tok"),
    "a matrix elsewhere": ("qwen3moe", {}, "blk.1.ffn_up_exps.weight", "blk.7.ffn_up_exps.weight has no place"),
    "a router elsewhere": ("qwen3moe", {}, "blk.1.ffn_gate_inp.weight", "blk.7.ffn_gate_inp.weight has no place"),
    "a kernel elsewhere": ("lfm2", {}, "blk.0.shortconv.conv.weight", "no tensor|no place"),
    "no kinds of layers": ("lfm2", {}, "lfm2.attention.head_count_kv", "cannot read"),
    "no width of kernels": ("lfm2", {}, "lfm2.shortconv.l_cache", "cannot read"),
}


@pytest.mark.parametrize("case", WRONG_EXPERTS)
def test_what_a_mixture_or_lfm2_lacks_is_said(case, tmp_path):
    architecture, fields, key_or_tensor, message = WRONG_EXPERTS[case]
    path = write_gguf(tmp_path / "m.gguf", architecture, **fields)
    old = key_or_tensor.encode()
    if old.startswith(b"blk."):
        edited(path, (old, b"blk.7" + old[5:]))
    elif "expert" in case or "count" in case:
        count = 3 if "count" in case else 2
        edited(path, (old + number(4, 4) + number(count, 4), old + number(4, 4) + number(5, 4)))
    elif old:
        edited(path, (old, b"x" * len(old)))
    with pytest.raises(InputError, match=message) as raised:
        opened(path)
    assert "\n" not in str(raised.value)


def test_an_architecture_whose_experts_transformers_does_not_place(tmp_path):
    """A mixture with llama's name, as Mixtral's files are, would lose its experts."""
    path = write_gguf(
        tmp_path / "m.gguf", change=lambda w: w.add_tensor("blk.0.ffn_up_exps.weight", np.zeros((2, 4, 32), np.float32))
    )
    with pytest.raises(InputError, match="blk.0.ffn_up_exps.weight has no place"):
        opened(path)
