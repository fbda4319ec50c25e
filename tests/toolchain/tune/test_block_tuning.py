"""Blocks tuned on their own output: the error falls, never rises, and norms and biases are stored with the codes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from export.artefacts.checkpoint import QuantizedCheckpoint
from tests.conftest import _checkpoint
from toolchain.quantize import method
from toolchain.settings.quantize import QuantizeSettings
from toolchain.tune.block import BlockTuneSettings, tune_block
from toolchain.tune.trainable import trainable_layer


class Block(nn.Module):
    """Two layers with a bias and a norm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.norm = nn.Linear(32, 48), nn.Linear(48, 32), nn.LayerNorm(32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(torch.relu(self.first(self.norm(x))))


def quantized(form: str):
    block, inputs = Block().requires_grad_(False), torch.randn(12, 16, 32, generator=torch.Generator().manual_seed(1))
    targets = block(inputs)
    for name in ("first", "second"):
        module = block.get_submodule(name)
        w = module.weight.numpy()
        stored = method("athena")(w, np.eye(w.shape[1]), QuantizeSettings(bits=2, passes=1, format=form))
        block.set_submodule(name, trainable_layer(module, stored))
    return block, inputs, targets


@pytest.mark.parametrize("form", ["codebook", "trellis"])
def test_the_error_falls_and_what_is_stored_is_what_was_trained(form):
    block, inputs, targets = quantized(form)
    before, after = tune_block(block, block, inputs, targets, BlockTuneSettings(60, 0.0, 2))
    assert after < 0.8 * before
    size = targets.square().mean()
    assert float((block(inputs) - targets).square().mean() / size) == pytest.approx(after, rel=1e-4)
    for name in ("first", "second"):
        layer = block.get_submodule(name)
        assert isinstance(layer, nn.Module)
        stored = layer.to_stored({})  # type: ignore[operator]
        np.testing.assert_allclose(stored.dequantized(), layer.weight_matrix().detach().numpy(), atol=1e-6)  # type: ignore[operator]


def test_a_block_that_only_gets_worse_stays_as_it_was():
    block, inputs, targets = quantized("codebook")
    kept = {name: p.detach().clone() for name, p in block.named_parameters()}
    before, after = tune_block(block, block, inputs, targets, BlockTuneSettings(3, 1.0, 2))
    assert after == before
    assert all(torch.equal(p, kept[name]) for name, p in block.named_parameters())


def test_whole_models_take_it_and_resume_from_tuned_blocks(demo_model, demo_text, tmp_path):
    options = {"bits": 2, "sequences": 16, "sequence_length": 128, "passes": 1}
    plain = _checkpoint(demo_model, str(demo_text), "0:0.5", tmp_path / "plain", **options)
    tuned = _checkpoint(demo_model, str(demo_text), "0:0.5", tmp_path / "tuned", block_steps=30, **options)
    norm = "model.layers.0.input_layernorm.weight"
    assert not np.array_equal(tuned.tensor(norm, ""), plain.tensor(norm, ""))
    assert tuned.manifest["totals"]["bytes"] == plain.manifest["totals"]["bytes"]
    # a run cut off after two blocks replays them, norms included, and ends in the same bytes
    whole = {p.name: p.read_bytes() for p in (tmp_path / "tuned").glob("*.safetensors")}
    for name in ("block-00002", "block-00003", "outside"):
        (tmp_path / "tuned" / f"{name}.safetensors").unlink()
    manifest = tmp_path / "tuned" / "athena.json"
    _forget_totals(manifest)
    again = _checkpoint(demo_model, str(demo_text), "0:0.5", tmp_path / "tuned", block_steps=30, **options)
    assert isinstance(again, QuantizedCheckpoint)
    assert whole == {p.name: p.read_bytes() for p in (tmp_path / "tuned").glob("*.safetensors")}


def _forget_totals(manifest) -> None:
    data = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({k: v for k, v in data.items() if k not in ("totals", "tensors", "shard_prefix")}))
