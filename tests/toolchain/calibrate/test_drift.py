"""Layers that follow the source model: order of reading, moments, targets, and whole runs."""

import numpy as np
import pytest
import torch

from export.artefacts.checkpoint import block_shard
from export.contract.errors import InputError
from export.graph.archs import model_spec
from tests.conftest import DEMO
from toolchain.calibrate import drift
from toolchain.calibrate.blocks import BlockRunner
from toolchain.calibrate.drift import Moments, input_moments, reading_order, source_inputs
from toolchain.pipeline.blocks.shard import replay
from toolchain.pipeline.run import quantize_model
from toolchain.settings.calibration import CalibrationChoice
from toolchain.settings.quantize import QuantizeSettings
from toolchain.source.checkpoint import SourceModel


@pytest.fixture
def runner() -> BlockRunner:
    source = SourceModel(DEMO)
    return BlockRunner(source, model_spec(source.config))


def test_layers_are_read_in_the_order_of_computation(runner):
    hidden = runner.embed(np.arange(3, 43).reshape(2, 20))
    names = runner.spec.block.linears()
    parts = reading_order(runner, runner.load_block(0), names[::-1], hidden)
    assert [set(part) for part in parts] == [
        {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"},
        {"self_attn.o_proj"},
        {"mlp.gate_proj", "mlp.up_proj"},
        {"mlp.down_proj"},
    ]


def test_moments_are_the_weighted_sums(runner):
    """Against the definition, on inputs that hooks of our own record in whole forward passes."""
    hidden = runner.embed(np.random.default_rng(0).integers(3, 500, (3, 20)))
    generator = torch.Generator().manual_seed(0)
    changed = hidden + 0.1 * torch.randn(hidden.shape, generator=generator)
    block, source = runner.load_block(1), runner.load_block(1)
    with torch.no_grad():
        block.self_attn.v_proj.weight.mul_(0.9)  # a quantized layer before the part
    weights = np.random.default_rng(1).uniform(0.5, 2.0, (3, 20)).astype(np.float32)
    found = input_moments(
        runner, (block, source), ("mlp.down_proj",), (changed, hidden), {"mlp.down_proj": weights}
    )["mlp.down_proj"]  # fmt: skip
    rows = []
    for one, states in ((block, changed), (source, hidden)):
        seen: list[np.ndarray] = []
        handle = one.mlp.down_proj.register_forward_pre_hook(lambda m, x, seen=seen: seen.append(x[0].double().numpy()))
        with torch.no_grad():
            for i in range(3):  # in turn: run() takes them in threads
                runner.forward(one, states[i : i + 1])
        handle.remove()
        rows.append(np.concatenate(seen).reshape(60, -1))
    quantized, own = rows
    share = (weights / weights.mean()).reshape(60, 1)
    hessian = 2 / 60 * (quantized * share).T @ quantized
    drift = 2 / 60 * ((own - quantized) * share).T @ quantized
    # float32 products of 20 rows
    np.testing.assert_allclose(found.hessian, hessian, rtol=1e-4, atol=1e-5 * np.abs(hessian).max())
    np.testing.assert_allclose(found.drift, drift, rtol=1e-4, atol=1e-5 * np.abs(drift).max())


def test_layers_of_one_input_share_their_moments(runner):
    hidden = runner.embed(np.arange(3, 43).reshape(2, 20))
    blocks, part = (runner.load_block(0), runner.load_block(0)), ("self_attn.q_proj", "self_attn.k_proj")
    alike = np.ones((2, 20), np.float32)
    found = input_moments(runner, blocks, part, (hidden, hidden))
    assert found[part[0]] is found[part[1]]
    assert not found[part[0]].drift.any()  # the source itself: nothing to make up for
    apart = input_moments(runner, blocks, part, (hidden, hidden), {part[0]: alike, part[1]: alike * [[1], [2]]})
    assert np.array_equal(apart[part[0]].hessian, found[part[0]].hessian)
    assert not np.array_equal(apart[part[1]].hessian, found[part[0]].hessian)


def test_the_target_is_the_least_squares_solution():
    rng = np.random.default_rng(2)
    own, weights = rng.standard_normal((500, 12)), rng.standard_normal((7, 12))
    changed = own @ (np.eye(12) + 0.2 * rng.standard_normal((12, 12))) + 0.1 * rng.standard_normal((500, 12))
    moments = Moments(changed.T @ changed, (own - changed).T @ changed)
    best = np.linalg.lstsq(changed, own @ weights.T, rcond=None)[0].T
    np.testing.assert_allclose(moments.target(weights, 1.0, 0.0), best, rtol=1e-5, atol=1e-6)
    for held_back in (moments.target(weights, 1.0, 10.0), moments.target(weights, 0.5, 0.0)):
        assert 0 < np.abs(held_back - weights).max() < np.abs(best - weights).max()


def _settings(**changes):
    return QuantizeSettings(**{"bits": 2, "sequences": 96, "sequence_length": 64, "passes": 1, **changes})


@pytest.fixture(scope="module")
def errors(demo_text, tmp_path_factory):
    """Mean squared error of the demo model's last hidden states on unseen text, by --asymmetric."""
    from toolchain.calibrate.text import calibration_text, load_tokenizer, sample_sequences, slice_text

    root, choice = tmp_path_factory.mktemp("drift"), CalibrationChoice(str(demo_text), "0:0.5")
    source = SourceModel(DEMO)
    spec = model_spec(source.config)
    unseen = sample_sequences(
        slice_text(calibration_text(str(demo_text), DEMO), "0.5:1"), load_tokenizer(DEMO), 16, 64, 1, 1536, "text"
    ).tokens
    runner, found = BlockRunner(source, spec), {}
    for asymmetric in (False, True):
        out = root / str(asymmetric)
        quantize_model(str(DEMO), out, _settings(asymmetric=asymmetric), choice, quiet=True)
        hidden = wanted = runner.embed(unseen)
        for number in range(spec.blocks):
            block = runner.load_block(number)
            wanted = runner.run(block, wanted)
            replay(block, out / block_shard(number), spec.block_name(number), spec.names(number).linears())
            hidden = runner.run(block, hidden)
        found[asymmetric] = float((hidden - wanted).square().mean() / wanted.square().mean())
    return found


def test_following_the_source_lowers_the_error_of_the_whole_model(errors):
    assert errors[True] < 0.95 * errors[False]


def test_a_resumed_run_is_the_same_to_the_byte(tmp_path, demo_text):
    choice, settings = CalibrationChoice(str(demo_text)), _settings(asymmetric=True, bits=3, sequences=4)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    quantize_model(str(DEMO), whole, settings, choice, quiet=True)
    quantize_model(str(DEMO), cut, settings, choice, quiet=True)
    manifest = (cut / "athena.json").read_bytes()
    import json

    begun = {k: v for k, v in json.loads(manifest).items() if k not in ("totals", "tensors", "shard_prefix")}
    (cut / "athena.json").write_text(json.dumps(begun))
    for number in (2, 3):
        (cut / block_shard(number)).unlink()
    quantize_model(str(DEMO), cut, settings, choice, quiet=True)
    for path in sorted(whole.glob("*.safetensors")):
        assert (cut / path.name).read_bytes() == path.read_bytes()


def test_rules():
    with pytest.raises(InputError, match="--asymmetric"):
        QuantizeSettings(asymmetric=True, guided=True, guided_groups=2)


@pytest.mark.parametrize("room", [1 << 29, 0])
def test_the_source_is_read_once_or_again(runner, monkeypatch, room):
    """Its inputs of all layers, kept from one pass, give the moments that a pass for each layer gives."""
    monkeypatch.setattr(drift, "_ROOM", room)
    hidden = runner.embed(np.arange(3, 63).reshape(3, 20))
    block, source = runner.load_block(0), runner.load_block(0)
    with torch.no_grad():
        block.self_attn.v_proj.weight.mul_(0.9)
    parts = reading_order(runner, source, runner.spec.block.linears(), hidden)
    inputs, outputs = source_inputs(runner, source, parts, hidden)
    assert torch.equal(outputs, runner.run(source, hidden))
    if room == 0:
        assert inputs is None
        return
    for part in parts:
        anew = input_moments(runner, (block, source), part, (hidden, hidden))
        kept = input_moments(runner, (block, source), part, (hidden, hidden), None, inputs[part[0]])
        for name in part:
            assert np.array_equal(anew[name].hessian, kept[name].hessian)
            assert np.array_equal(anew[name].drift, kept[name].drift)
