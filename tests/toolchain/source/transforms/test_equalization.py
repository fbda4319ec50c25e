"""Equalized columns: the model computes the same in every family, and columns come out equally large."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from export.graph.archs import model_spec
from tests.conftest import DEMO, _checkpoint, _package
from tests.export.graph.families import (
    TINY,
    TINY_ENCODERS,
    check_folded_export,
    is_mixture,
    random_text,
    tiny_model,
    write_tokenizer,
)
from toolchain.calibrate.own_text import whole_model
from toolchain.source.checkpoint import SourceModel
from toolchain.source.transforms.equalization import EqualizedSource, column_energy, column_factors
from toolchain.source.transforms.rotation import RotatedSource


def _uneven(folder, variant):
    """A tiny model whose columns differ by factors, so that a fold in the wrong place shows."""
    tiny_model(variant, folder)
    kind = AutoModelForCausalLM if variant in TINY else AutoModel
    model = kind.from_pretrained(folder, dtype=torch.float32).eval()
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                factors = torch.exp(0.5 * torch.randn(sum(parameter.shape), generator=draws))
                parameter.mul_(factors[: parameter.shape[0], None] * factors[parameter.shape[0] :])
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("variant", [v for v in (*TINY, *TINY_ENCODERS) if not is_mixture(v)])  # refused for those
def test_the_equalized_model_computes_the_same(variant, tmp_path):
    model = _uneven(tmp_path, variant)
    source = SourceModel(tmp_path)
    spec = model_spec(source.config)
    source = EqualizedSource(source, spec)
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        expected, changed = model(ids)[0], 0
        for name, parameter in model.named_parameters():
            if name not in source.folded():
                continue
            fresh = source.tensor(name)
            changed += not torch.allclose(fresh, parameter, rtol=1e-2)
            parameter.copy_(fresh)
        found = model(ids)[0]
    assert changed >= 2 * spec.blocks  # the value layer and the attention's output layer at least
    assert float((found - expected).abs().max()) <= 2e-5 * float(expected.abs().max())  # float32, other factors


def test_columns_come_out_equally_large(tmp_path):
    _uneven(tmp_path, "llama")
    spec = model_spec(SourceModel(tmp_path).config)
    plain = SourceModel(tmp_path)
    for name in ("self_attn.q_proj", "mlp.gate_proj", "mlp.down_proj", "self_attn.o_proj"):
        layer = f"{spec.block_name(1)}{name}.weight"
        before, after = (column_energy(s.tensor(layer)) for s in (plain, EqualizedSource(plain, spec)))
        assert float(after.std() / after.mean()) < 0.7 * float(before.std() / before.mean())


def test_factors_are_bounded_and_leave_dead_columns_alone():
    energy = torch.tensor([0.0, 1.0, 1.0, 4.0, 1e-9, 1e6], dtype=torch.float64)
    assert column_factors(energy).tolist() == [1.0, 1.0, 1.0, 0.5, 4.0, 0.25]
    assert torch.equal(column_factors(torch.zeros(3, dtype=torch.float64)), torch.ones(3))
    assert torch.isfinite(column_energy(torch.zeros(2, 3))).all()


def test_the_whole_model_holds_what_is_folded(tmp_path):
    """Teacher, gradients and own text are those of the model whose weights are quantized."""
    _uneven(tmp_path, "qwen2")
    spec = model_spec(SourceModel(tmp_path).config)
    source = EqualizedSource(RotatedSource(SourceModel(tmp_path), spec, "values", 0), spec)
    model = whole_model(source)
    name = f"{spec.block_name(0)}self_attn.v_proj"
    for part in ("weight", "bias"):
        assert torch.equal(model.get_parameter(f"{name}.{part}"), source.tensor(f"{name}.{part}"))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        expected, found = plain(ids).logits, model(ids).logits
    assert float((found - expected).abs().max()) <= 2e-5 * float(expected.abs().max())


@pytest.mark.parametrize("method", ["athena", "squeezellm"])
def test_an_equalized_model_is_quantized_tuned_and_exported(method, tmp_path):
    folder, text = tmp_path / "source", random_text(tmp_path / "text.txt")
    _uneven(folder, "llama")
    write_tokenizer(folder)
    options = {"method": method, "bits": 4, "sequences": 4, "sequence_length": 32, "equalize": True,
               "rotation": "values"}  # fmt: skip
    if method == "athena":
        options |= {"passes": 1, "guided": True, "tune_steps": 3, "tune_length": 32}
    checkpoint = _checkpoint(folder, str(text), None, tmp_path / "q", **options)
    check_folded_export(folder, checkpoint, _package(checkpoint, tmp_path / "model"))


def test_layer_losses_fall_on_a_trained_model(tmp_path, demo_text):
    """The attention's layers of the bundled model, whose columns differ, at 3 bits."""
    options, losses = {"bits": 3, "sequences": 16, "format": "trellis"}, []
    for equalize in (False, True):
        folder = tmp_path / str(equalize)
        checkpoint = _checkpoint(DEMO, str(demo_text), "0:0.2", folder, equalize=equalize, **options)
        records = [r for name, r in checkpoint.records.items() if "self_attn" in name and r.losses]
        assert len(records) == 4 * 4
        losses.append(sum(list(r.losses.values())[-1] for r in records))
    assert losses[1] < losses[0]
