"""Folded rotations: the model computes the same, weights lose their outliers, and what cannot be rotated says so."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from export.contract.errors import InputError
from export.graph.archs import model_spec
from tests.conftest import _checkpoint, _package
from tests.export.graph.families import check_folded_export, random_text, tiny_model, write_tokenizer
from toolchain.settings.quantize import QuantizeSettings
from toolchain.source.checkpoint import SourceModel
from toolchain.source.transforms.rotation import RotatedSource, hadamard_rotation

BOTH = "values,residual"
UNTIED = {"tie_word_embeddings": False}


@pytest.mark.parametrize("size", [1, 32, 48, 172])
def test_the_rotation_is_orthogonal(size):
    turn = hadamard_rotation(size, 3)
    np.testing.assert_allclose((turn @ turn.T).numpy(), np.eye(size), atol=1e-6)
    assert torch.equal(turn, hadamard_rotation(size, 3)) and (
        size == 1 or not torch.equal(turn, hadamard_rotation(size, 4))
    )


@pytest.mark.parametrize(
    "variant, kind",
    [("llama", "residual"), ("llama", "values"), ("llama", BOTH), ("mistral", BOTH), ("qwen2", BOTH),
     ("qwen3", BOTH), ("smollm3", "residual"), ("granite", BOTH), ("phi3", "residual"), ("gpt_neox", None),
     ("olmo2", "values"), ("opt", "values"), ("gemma2", "values"), ("gemma4_text", "values"),
     ("gemma3n_text", "values"), ("lfm2", "values"), ("falcon_h1", "values")],
)  # fmt: skip
def test_the_rotated_model_computes_the_same(variant, kind, tmp_path):
    tiny_model(variant, tmp_path, **UNTIED)
    spec = model_spec(SourceModel(tmp_path).config)
    if kind is None:  # query, key and value in one layer, LayerNorm
        with pytest.raises(InputError, match="value layer of its own"):
            RotatedSource(SourceModel(tmp_path), spec, "values", 0)
        with pytest.raises(InputError, match="needs RMSNorm"):
            RotatedSource(SourceModel(tmp_path), spec, "residual", 0)
        return
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # norms that are all ones would hide a mistake
            if "norm" in name and parameter.ndim == 1:
                parameter.mul_(1 + 0.3 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    ids = torch.arange(3, 23)[None]
    source = RotatedSource(SourceModel(tmp_path), spec, kind, 0)
    with torch.no_grad():
        expected, changed = model(ids).logits, 0
        for name, parameter in model.named_parameters():
            fresh = source.tensor(name)
            changed += not torch.allclose(fresh, parameter, atol=1e-3)
            parameter.copy_(fresh)
        found = model(ids).logits
    assert changed >= sum(spec.names_of_layer(layer).attends for layer in range(spec.layers))
    assert float((found - expected).abs().max()) <= 2e-5 * float(expected.abs().max())  # float32 sums in another order


@pytest.mark.parametrize("variant", ["gemma4_text", "gemma4_text large", "gemma4_text experts", "gemma3n_text"])
@pytest.mark.parametrize("kind", ["values", "residual"])
def test_what_gemma_s_newer_blocks_do_not_admit_is_said(variant, kind, tmp_path):
    """Their residual streams pass norms behind every layer; values that are keys cannot be turned alone."""
    tiny_model(variant, tmp_path)
    source = SourceModel(tmp_path)
    spec = model_spec(source.config)
    if kind == "residual":
        with pytest.raises(InputError, match="--rotation residual needs RMSNorm in front of every layer"):
            RotatedSource(source, spec, kind, 0)
    elif any(block.values_are_keys for block in spec.kinds()):
        with pytest.raises(InputError, match="value layer of its own"):
            RotatedSource(source, spec, kind, 0)
    else:
        RotatedSource(source, spec, kind, 0)


def test_tied_heads_are_refused(tmp_path):
    tiny_model("llama", tmp_path, tie_word_embeddings=True)
    with pytest.raises(InputError, match="shares the embedding"):
        RotatedSource(SourceModel(tmp_path), model_spec(SourceModel(tmp_path).config), "residual", 0)
    with pytest.raises(
        InputError, match="--rotation 'some' is unknown; choose none, or some of values, residual, activations"
    ):
        QuantizeSettings(rotation="some")


def test_outliers_of_a_channel_are_spread(tmp_path):
    tiny_model("llama", tmp_path, **UNTIED)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    name = "model.layers.0.mlp.up_proj.weight"
    with torch.no_grad():
        model.get_parameter(name)[:, 5] *= 50
    model.save_pretrained(tmp_path)
    source = RotatedSource(SourceModel(tmp_path), model_spec(SourceModel(tmp_path).config), "residual", 0)
    plain, rotated = model.get_parameter(name).detach(), source.tensor(name)
    assert float(plain.abs().max() / plain.std()) > 2 * float(rotated.abs().max() / rotated.std())


def test_a_rotated_model_is_quantized_tuned_and_exported(tmp_path):
    folder, text = tmp_path / "source", random_text(tmp_path / "text.txt")
    tiny_model("llama", folder, **UNTIED)
    write_tokenizer(folder)
    options = {"bits": 4, "sequences": 4, "sequence_length": 32, "passes": 1, "rotation": BOTH, "tune_steps": 3,
               "tune_length": 32, "block_steps": 2}  # fmt: skip
    checkpoint = _checkpoint(folder, str(text), None, tmp_path / "q", **options)
    check_folded_export(folder, checkpoint, _package(checkpoint, tmp_path / "model"))
