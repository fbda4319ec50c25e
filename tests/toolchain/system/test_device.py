"""--device: what it takes and refuses, and whole runs on a stand-in that lets nothing leave the device unsaid."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from export.contract.errors import InputError
from export.files.access import MANIFEST
from tests.conftest import DEMO
from tests.toolchain.system.stand_in import DEVICE, StandIn
from toolchain.cli import app
from toolchain.numerics.products import BFLOAT16, FLOAT32, with_precision
from toolchain.pipeline import run
from toolchain.pipeline.run import quantize_model
from toolchain.predict import probe
from toolchain.quantize import method
from toolchain.settings.calibration import DEVICES, CalibrationChoice, Workers
from toolchain.settings.quantize import QuantizeSettings
from toolchain.settings.razor import RazorSettings
from toolchain.system.device import batches, chosen_device, summed
from toolchain.tune.divergence import divergence
from toolchain.tune.microbatch import accumulate, trainable_parameters
from toolchain.tune.trainable import trainable_layer

RUNS = {
    "scalar": {"bits": 3},
    "columns in groups, outliers": {"bits": 3, "group_size": 8, "outliers": 0.01},
    "trellis, tuned by blocks": {"bits": 2, "format": "trellis", "block_steps": 2},
    "vectors, guided, tuned": {
        "bits": 2,
        "format": "vectors",
        "dimension": 2,
        "guided": True,
        "tune_steps": 2,
        "own_text": 0.5,
    },
    "trellis, tuned": {"bits": 2, "format": "trellis", "tune_steps": 5},
    "a budget": {"budget": 3.1},
    "a budget, following the source": {"budget": 3.1, "asymmetric": True, "guided": True},
    "a Hessian for each run of rows": {"bits": 3, "guided": True, "guided_groups": 2},
    "integers": {"bits": 4, "method": "qrazor", "razor": RazorSettings(activation_bits=4, kv=8)},
    "squeezellm": {"bits": 3, "method": "squeezellm"},
}  # fmt: skip


def available(monkeypatch, *names):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in names)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in names)


@pytest.mark.parametrize(
    "here, chosen", [((), "cpu"), (("mps",), "mps"), (("cuda",), "cuda"), (("cuda", "mps"), "cuda")]
)
def test_auto_takes_the_first_there_is(monkeypatch, here, chosen):
    available(monkeypatch, *here)
    assert chosen_device(Workers(device="auto")).type == chosen
    assert chosen_device(Workers()).type == chosen_device(Workers(device="cpu", count=4)).type == "cpu"


@pytest.mark.parametrize("name", ["cuda", "mps"])
@pytest.mark.parametrize("command", ["quantize", "export"])
@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_device_that_is_not_there_is_one_line(monkeypatch, tmp_path, demo_model, name, command, more):
    available(monkeypatch)
    found = CliRunner().invoke(app, [command, str(demo_model), "-o", str(tmp_path / "out"), "--device", name, *more])
    assert found.exit_code == 2 and f"--device {name}: torch" in found.output and found.output.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_unknown_device_and_workers_beside_a_device_are_refused(monkeypatch):
    for name in ("gpu", "cuda:1", "", "CPU"):
        with pytest.raises(InputError, match=f"--device '{name}' is unknown; choose one of {', '.join(DEVICES)}"):
            Workers(device=name)
    available(monkeypatch, "cuda")
    for workers in (Workers(device="cuda", count=2), Workers(device="auto", scheduler="tcp://a:1")):
        with pytest.raises(InputError, match="are for --device cpu: cuda solves the layers itself"):
            chosen_device(workers)


def test_batches_cover_the_sequences():
    assert [s.stop - s.start for s in batches(5, 512, torch.device("cpu"))] == [1] * 5
    assert [s.stop - s.start for s in batches(19, 512, DEVICE)] == [8, 8, 3]
    assert [s.stop - s.start for s in batches(3, 10_000, DEVICE)] == [1] * 3


def test_sums_are_float64_even_where_the_device_has_none():
    term = torch.full((2, 2), 1e-8)
    total = summed(None, torch.ones(2, 2))
    for _ in range(3):
        total = summed(total, term)
    assert total.dtype == torch.float64 and torch.allclose(total - 1, 3 * term.double(), rtol=1e-6)


@pytest.fixture(scope="module")
def small_model(tmp_path_factory):
    """Two layers of 16 with random weights and the bundled model's tokenizer."""
    folder = tmp_path_factory.mktemp("small") / "model"
    config = LlamaConfig(
        vocab_size=1536, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, folder / name)
    return folder


def quantized(model, text, out, options, workers=None):
    settings = QuantizeSettings(sequences=6, sequence_length=48, tune_length=32, tune_batch=2, passes=1, **options)
    return quantize_model(
        str(model), out, settings, CalibrationChoice(str(text), "0:0.2"), quiet=True, workers=workers or Workers()
    )


@pytest.mark.parametrize("name", RUNS)
def test_a_run_on_the_device_is_that_of_the_processor(monkeypatch, tmp_path, small_model, demo_text, name):
    """Every tensor that a block, a solver in torch or a training step touches is on the device, or the run stops."""
    options, float32 = RUNS[name], Workers(precision="float32")
    plain = quantized(small_model, demo_text, tmp_path / "plain", options, float32)
    monkeypatch.setattr(run, "chosen_device", lambda workers: DEVICE)
    with StandIn() as device:
        there = quantized(small_model, demo_text, tmp_path / "there", options, float32)
    assert device.ran["aten::mm"] + device.ran["aten::bmm"] > 10
    assert plain.manifest["device"] == "cpu" and there.manifest["device"] == DEVICE.type
    assert plain.manifest["fingerprint"] == there.manifest["fingerprint"]
    assert plain.manifest["totals"] == there.manifest["totals"]
    names = [record.name for record in plain.records.values() if len(record.shape) == 2]
    for record in names:
        assert replace(plain.records[record], losses={}) == replace(there.records[record], losses={})
    # solvers end in other codes after a tie, so the whole is compared by what it loses
    losses = [sum(min(r.losses.values()) for r in c.records.values() if r.losses) for c in (plain, there)]
    assert losses[1] == pytest.approx(losses[0], rel=0.03)


def tuned_step(precision, device):
    """Loss and gradients by name of one step over five windows, for a student of two formats."""
    rng, torch_draws = np.random.default_rng(0), torch.Generator().manual_seed(0)
    layers = []
    for own, shape in (({"state_bits": 4, "rows_per_codebook": 8}, (24, 16)), ({}, (32, 24))):
        options = QuantizeSettings(bits=2, passes=1, format="trellis" if own else "codebook", **own)
        stored = method("athena")(rng.standard_normal(shape), np.eye(shape[1]), options)
        layer = with_precision(torch.nn.Sequential(torch.nn.Linear(shape[1], shape[0])), precision)[0]
        with torch.no_grad():
            layer.bias.copy_(torch.from_numpy(rng.standard_normal(shape[0])))
        layers.append(trainable_layer(layer, stored))
    student = torch.nn.Sequential(layers[0], torch.nn.GELU(), layers[1]).to(device)
    trainable_parameters(student)
    inputs = torch.randn(5, 7, 16, generator=torch_draws).to(device)
    wanted = torch.randn(5, 7, 32, generator=torch_draws).to(device)

    def loss_of(part):
        return divergence(student(inputs[part]), torch.nn.Identity(), wanted[part], torch.nn.Identity())

    loss = accumulate(student, loss_of, 5, 2)
    return loss, {name: p.grad.cpu().clone() for name, p in student.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("precision", [FLOAT32, BFLOAT16])
def test_gradients_of_a_tuning_step_are_those_of_the_processor(precision):
    plain = tuned_step(precision, torch.device("cpu"))
    with StandIn() as device:
        there = tuned_step(precision, DEVICE)
    assert device.ran["aten::bincount"] == 2 and there[0] == pytest.approx(plain[0], rel=1e-6)
    assert plain[1].keys() == there[1].keys() and len(plain[1]) >= 6
    for name, gradient in plain[1].items():
        assert float(gradient.abs().max()) > 0
        torch.testing.assert_close(there[1][name], gradient)


def test_a_dry_run_measures_the_device(monkeypatch, small_model, demo_text):
    monkeypatch.setattr(probe, "chosen_device", lambda workers: DEVICE)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: None)
    settings = QuantizeSettings(
        bits=2, format="trellis", sequences=6, sequence_length=32, passes=1, guided=True, tune_steps=2, own_text=0.5
    )
    with StandIn() as device:
        found = probe.predict(str(small_model), settings, CalibrationChoice(str(demo_text), "0:0.2"))
    assert found.seconds > 0 and device.ran["aten::mm"] > 10


def test_a_run_goes_on_on_another_device(monkeypatch, tmp_path, small_model, demo_text):
    options = {"bits": 3}
    whole = quantized(small_model, demo_text, tmp_path / "whole", options)
    with monkeypatch.context() as patched, StandIn():
        patched.setattr(run, "chosen_device", lambda workers: DEVICE)
        quantized(small_model, demo_text, tmp_path / "half", options)
    manifest = json.loads((tmp_path / "half" / MANIFEST).read_text())
    (tmp_path / "half" / MANIFEST).write_text(
        json.dumps({k: v for k, v in manifest.items() if k not in ("totals", "tensors", "shard_prefix")})
    )
    for path in sorted((tmp_path / "half").glob("*.safetensors"))[2:]:
        path.unlink()
    again = quantized(small_model, demo_text, tmp_path / "half", options)
    assert again.manifest["totals"] == whole.manifest["totals"] and again.manifest["device"] == "cpu"
    assert np.isfinite(sum(min(r.losses.values()) for r in again.records.values() if r.losses))
