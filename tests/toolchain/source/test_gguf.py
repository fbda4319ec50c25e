"""A GGUF file as the source is what transformers makes of it with `gguf_file=`: weights, logits, tokenizer, chat."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from export.contract.errors import InputError
from export.files.access import read_json
from tests.toolchain.source.gguf_models import FAMILIES, QUANTIZED, write_gguf
from toolchain.calibrate.own_text import whole_model
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
    state = model.state_dict()
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
    from toolchain.source.folding import FoldedSource

    source = FoldedSource(opened(write_gguf(tmp_path / "m.gguf", type_of=lambda name: "Q4_0")))
    name = "model.layers.0.mlp.up_proj.weight"
    assert source.group_codes(name) is not None
    source.change(name, lambda weight: weight * 2)
    assert source.group_codes(name) is None
