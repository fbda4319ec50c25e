"""An answer ends where generate() of transformers ends it: the same end-of-sequence ids from the same files."""

from __future__ import annotations

import json

import pytest

from export.contract.errors import InputError
from runtime_py.text.generator import stop_tokens

MISSING, BROKEN = object(), "{"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny")
    config = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=32
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("config", [MISSING, None, 3, [3, 4]])
@pytest.mark.parametrize("generation", [MISSING, BROKEN, {}, {"eos_token_id": None}, 5, [5], [5, 6], []])
def test_stop_tokens_equal_transformers(generation, config, tiny):
    from transformers import AutoModelForCausalLM

    path, data = tiny / "generation_config.json", json.loads((tiny / "config.json").read_text())
    data.pop("eos_token_id", None)
    (tiny / "config.json").write_text(json.dumps(data if config is MISSING else {**data, "eos_token_id": config}))
    path.unlink(missing_ok=True)
    if generation is not MISSING:
        values = generation if isinstance(generation, dict) else {"eos_token_id": generation}
        path.write_text(BROKEN if generation is BROKEN else json.dumps(values))
    eos = AutoModelForCausalLM.from_pretrained(tiny).generation_config.eos_token_id
    assert stop_tokens(tiny) == frozenset(eos if isinstance(eos, list) else [] if eos is None else [eos])


@pytest.mark.parametrize("value", ["</s>", 2.0, True, [True], ["a"], {"a": 1}, [[2]]])
@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_stop_tokens_that_are_no_integers_are_refused(name, value, tmp_path):
    (tmp_path / name).write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(InputError, match=f"{name}: eos_token_id must be"):
        stop_tokens(tmp_path)
