"""A random model small enough to be cut in a second, with the bundled model's tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from tests.conftest import DEMO

_SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "vocab_size": 1536, "head_dim": 16}
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}


def random_folder(folder: Path, kind: type = LlamaConfig, **changed: object) -> Path:
    """A model of random weights, large enough that every part of it matters."""
    torch.manual_seed(0)
    config = kind(**{**_SIZES, **_HEADS, "initializer_range": 0.1, "bos_token_id": 0, "eos_token_id": 0, **changed})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(DEMO / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llama: 3 layers of 64, 4 heads over 2 of keys and values, 96 channels."""
    return random_folder(tmp_path_factory.mktemp("tiny") / "source")


@pytest.fixture(scope="session")
def tiny_qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen3: norms of queries and keys on each head, an untied head."""
    return random_folder(tmp_path_factory.mktemp("qwen") / "source", Qwen3Config, tie_word_embeddings=False)
