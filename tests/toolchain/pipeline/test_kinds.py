"""A model whose blocks are of different kinds: every way of quantizing it, and what a dry run says of it."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from export.graph.archs import model_spec
from tests.conftest import _checkpoint, _package
from tests.export.graph.families import compare, dequantized_model, random_text, tiny_model
from toolchain.predict.probe import predict
from toolchain.settings.calibration import CalibrationChoice
from toolchain.settings.quantize import QuantizeSettings

SMALL = {"sequences": 2, "sequence_length": 32, "passes": 1}
OPTIONS = {
    "widths": {"bits": 3, "spread": True},
    "guided, following": {"bits": 4, "guided": True, "asymmetric": True},
    "tuned blocks": {"bits": 4, "block_steps": 2, "tune_batch": 2},
    "tuned, own text": {"bits": 4, "tune_steps": 2, "tune_batch": 2, "tune_length": 16, "own_text": 0.5},
}


MIXERS = {  # linear layers in place of attention, and what stays float32 there: in how many tensors of how many blocks
    "lfm2": ({"conv.in_proj", "conv.out_proj"}, "conv.conv", 4),
    "qwen3_5_text": (
        {"linear_attn.in_proj_qkv", "linear_attn.in_proj_z", "linear_attn.out_proj"}, "linear_attn.", 3 * 6,
    ),
    "mamba2": ({"mixer.in_proj", "mixer.out_proj"}, "mixer.", 3 * 6),
    "falcon_h1": ({"mamba.in_proj", "mamba.out_proj"}, "mamba.", 2 * 5),
}  # fmt: skip


@pytest.fixture(scope="module", params=MIXERS)
def source(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")
    tiny_model(request.param, folder / "source")
    random_text(folder / "text.txt")
    return folder


@pytest.mark.parametrize("options", OPTIONS)
def test_every_way_of_quantizing(options, source, tmp_path):
    text = str(source / "text.txt")
    checkpoint = _checkpoint(source / "source", text, None, tmp_path / "q", **SMALL, **OPTIONS[options])
    spec, records = model_spec(checkpoint.config), checkpoint.records
    assert all(records[name].bits for name in spec.quantizable())
    linears, inside, count = MIXERS[spec.model_type]
    assert {name.rpartition(".layers.")[2][2:] for name in spec.quantizable()} >= linears
    floats = [name for name in records if inside in name and name not in spec.quantizable()]
    assert len(floats) == count and all(records[name].scheme == "float32" for name in floats)
    plain = AutoModelForCausalLM.from_pretrained(source / "source", dtype=torch.float32)
    model = dequantized_model(source / "source", checkpoint)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in records and records[name].scheme == "float32":
                parameter.copy_(torch.from_numpy(checkpoint.tensor(name, "")))
                tuned = "tuned" in options and parameter.ndim == 1  # norms and biases
                assert tuned or torch.equal(parameter, plain.get_parameter(name))
    compare(model, _package(checkpoint, tmp_path / "model"), 1e-4)


@pytest.mark.parametrize("options", [{"bits": 4}, {"bits": 3, "spread": True}])
def test_a_dry_run_counts_blocks_of_every_kind(options, source, tmp_path):
    text = str(source / "text.txt")
    chosen = QuantizeSettings(**SMALL, **options)
    predicted = predict(str(source / "source"), chosen, CalibrationChoice(text))
    checkpoint = _checkpoint(source / "source", text, None, tmp_path / "q", **SMALL, **options)
    totals, outside = checkpoint.manifest["totals"], model_spec(checkpoint.config).outside().values()
    assert predicted.parameters == totals["linear_weights"] + sum(rows * columns for rows, columns in outside)
    assert predicted.effective_bits == pytest.approx(totals["effective_bits"], rel=0.1)
    assert predicted.seconds > 0
