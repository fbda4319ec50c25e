"""Adapters of many families: names as transformers has them, results those of transformers with W + scale B A."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from export.model_folder import write_model_folder
from runtime_py.engine.encoder import EncoderEngine
from runtime_py.load import open_model
from runtime_py.text.encoder import TextEncoder
from tests.export.graph.families import TINY, FloatCheckpoint, tiny_model
from tests.peft_folders import write_peft
from toolchain.adapters.adding import add_adapter

IDS = [5, 6, 7, 8, 9, 30, 20, 11, 12]
DECODERS = ["llama", "qwen2", "gpt2", "phi3", "gemma2", "opt", "gpt_neox", "lfm2"]
ENCODERS = ["bert", "albert", "distilbert"]


def layers(model):
    """Linear layers of the blocks and GPT-2's Conv1D: name, module."""
    kinds = ("Linear", "Conv1D")
    found = {
        name: m for name, m in model.named_modules() if type(m).__name__ in kinds and any(c.isdigit() for c in name)
    }
    return {name: m for name, m in found.items() if "pooler" not in name}


def merge(model, folder, rank=3):
    """A LoRA folder for every linear layer of the blocks, and the model with it merged in."""
    rng, pairs = np.random.default_rng(0), {}
    for name, module in layers(model).items():
        turned = type(module).__name__ == "Conv1D"
        rows, columns = module.weight.shape[::-1] if turned else module.weight.shape
        a, b = (rng.standard_normal(s).astype(np.float32) * 0.3 for s in ((rank, columns), (rows, rank)))
        change = torch.from_numpy(2.0 * b @ a)
        with torch.no_grad():
            module.weight += change.T if turned else change
        pairs[name] = (a, b)
    return write_peft(folder, pairs, r=rank, lora_alpha=2 * rank)


def exported(root, variant):
    tiny_model(variant, root / "source")
    (root / "out").mkdir()
    write_model_folder(FloatCheckpoint(root / "source"), root / "out")
    (root / "out" / "tokenizer.json").write_bytes((root / "source" / "tokenizer.json").read_bytes())
    return root / "out"


@pytest.mark.parametrize("variant", [name for name in DECODERS if name in TINY])
def test_decoders(tmp_path, variant):
    folder = exported(tmp_path, variant)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "source", dtype=torch.float32).eval()
    with torch.no_grad():
        before = model(torch.tensor([IDS])).logits[0].numpy()
        lora = merge(model, tmp_path / "lora")
        wanted = model(torch.tensor([IDS])).logits[0].numpy()
    assert len(add_adapter(folder, "x", lora, 32).terms) == len(layers(model))
    for activations in ("float32", "int8"):  # float weights: products of both are of floats
        runner, _ = open_model(folder, activations, adapters=["x"])
        for adapter, expected in (("", before), ("x", wanted)):
            state = runner.new_state()
            runner.adapt(state, adapter)
            found = runner.forward(state, IDS)
            assert np.abs(found - expected).max() < 5e-3 * np.abs(expected).max(), (activations, adapter)


@pytest.mark.parametrize("variant", ENCODERS)
def test_encoders(tmp_path, variant):
    """ALBERT's layers share their matrices: one pair of factors for all of them."""
    folder = exported(tmp_path, variant)
    model = AutoModel.from_pretrained(tmp_path / "source", dtype=torch.float32).eval()
    with torch.no_grad():
        before = model(torch.tensor([IDS])).last_hidden_state[0].numpy()
        lora = merge(model, tmp_path / "lora")
        wanted = model(torch.tensor([IDS])).last_hidden_state[0].numpy()
    add_adapter(folder, "x", lora, 32)
    for activations in ("float32", "int8"):
        encoder = TextEncoder(folder, activations, adapters=["x"])
        assert isinstance(encoder._runner, EncoderEngine) == (activations == "int8"), encoder.interpreted
        for adapter, expected in (("", before), ("x", wanted)):
            assert np.abs(encoder.states(IDS, adapter=adapter) - expected).max() < 5e-3 * np.abs(expected).max()
        assert not np.array_equal(encoder.embed_ids(IDS), encoder.embed_ids(IDS, ""))
