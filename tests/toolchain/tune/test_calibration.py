"""Calibration of uniform codes: rounding by slow references, smoothing that changes nothing, blocks that get better."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from export.contract.operators.integers import sdr_quantize
from export.contract.sdr import SdrFormat
from export.graph.archs import model_spec
from tests.export.graph.families import TINY, is_mixture, tiny_model
from toolchain.calibrate.blocks import BlockRunner, get_weight, set_weight
from toolchain.quantize.methods import abq, rtn
from toolchain.settings.quantize import QuantizeSettings
from toolchain.settings.razor import TOKEN, RazorSettings
from toolchain.source.checkpoint import SourceModel
from toolchain.source.transforms.sites import sites
from toolchain.tune import calibration
from toolchain.tune.calibration import calibrated_block, fold, round_inputs
from toolchain.tune.clipped import Widths, best_shares, clipped, whole
from toolchain.tune.objective import Objective, distance, divergence


def settings_of(bits: int, balanced: bool = False, activations: int = 8, **more) -> QuantizeSettings:
    razor = RazorSettings(activation_bits=activations, activation_basis=activations or 16, activation_unit=TOKEN)
    return QuantizeSettings(method="abq", bits=bits, bit_balance=balanced, razor=razor, **more)


def slowly(w: np.ndarray, shares: np.ndarray, lowest: int, highest: int) -> tuple[np.ndarray, np.ndarray]:
    """Levels int [N, K] and their products with the scales, one weight after another."""
    levels, values = np.zeros(w.shape, int), np.zeros(w.shape)
    for n in range(w.shape[0]):
        top = max(abs(float(x)) for x in w[n])
        scale = float(shares[n, 0]) * top / -lowest
        for k in range(w.shape[1]):
            level = round(float(w[n, k]) / scale) if scale else 0  # half to even
            levels[n, k] = min(max(level, lowest), highest)
            values[n, k] = levels[n, k] * scale
    return levels, values


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 8), st.booleans(), st.integers(1, 7), st.integers(1, 30), st.booleans(), st.integers(0, 10**6)
)  # fmt: skip
def test_rounding_is_that_of_single_weights(bits, balanced, rows, columns, zero_row, seed):
    bits = 2 if balanced else bits
    rng = np.random.default_rng(seed)
    # dyadic shares and power-of-two tops: scales are exact in float16 and float32, so levels are the same everywhere
    w = rng.integers(-256, 257, (rows, columns)) / 256.0
    w[:, 0] = 1.0
    w[0] *= not zero_row
    shares = rng.choice([0.25, 0.5, -0.5, 0.75, -1.0], (rows, 1))
    lowest, highest = abq.levels_of(bits, balanced)
    levels, values = slowly(w, shares, lowest, highest)
    found = abq.quantize(w, None, settings_of(bits, balanced), shares)
    np.testing.assert_array_equal(found.dequantized(), values)
    book = found["codebook"].reshape(-1).astype(int)
    np.testing.assert_array_equal(book, np.minimum(np.arange(book.size) + lowest, highest))
    assert found.layout.bits == (3 if balanced else bits) and (levels <= highest).all()
    trained = clipped(torch.from_numpy(w).float(), torch.from_numpy(shares).float(), Widths(lowest, highest, 0))
    np.testing.assert_array_equal(trained.numpy(), values)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 8), st.integers(1, 9), st.integers(1, 40), st.integers(0, 10**6))
def test_without_clipping_it_is_round_to_nearest(bits, rows, columns, seed):
    w = np.random.default_rng(seed).standard_normal((rows, columns))
    w[0] *= seed % 3
    ours = abq.quantize(w, None, settings_of(bits))
    theirs = rtn.quantize(w, None, QuantizeSettings(method="rtn", bits=bits))
    for part in ("codes", "codebook"):
        np.testing.assert_array_equal(ours[part], theirs[part])
    np.testing.assert_array_equal(np.abs(ours["scale"]), np.abs(theirs["scale"]))
    np.testing.assert_array_equal(ours.dequantized(), theirs.dequantized())


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 8), st.integers(1, 6), st.integers(1, 40), st.integers(0, 10**6))
def test_inputs_are_rounded_as_the_operator_rounds_them(bits, tokens, columns, seed):
    x = np.random.default_rng(seed).standard_normal((tokens, columns)).astype(np.float32)
    x[0] *= seed % 2
    codes, flags, units = sdr_quantize(x, np.ones(1, np.float32), SdrFormat(bits, bits), per_token=True)
    assert not flags.any()
    integers = codes.reshape(tokens, -1)[:, :columns].astype(np.float32)
    # x / unit is computed alike, so integers are the same; one product and one difference round in float32
    np.testing.assert_allclose(whole(torch.from_numpy(x), bits).numpy(), integers * units, rtol=1e-6, atol=1e-6)
    assert whole(torch.from_numpy(x), 0) is not None and torch.equal(whole(torch.from_numpy(x), 0), torch.from_numpy(x))


def test_the_start_is_the_best_of_its_grid():
    w, energy = torch.randn(6, 50, generator=torch.Generator().manual_seed(0)), torch.rand(50) + 0.1
    for balanced in (False, True):
        widths = Widths(*abq.levels_of(2, balanced), 0)
        best = best_shares(w, energy, widths)
        error = ((w - clipped(w, best, widths)).square() * energy).sum(dim=1)
        for share in (0.98, -0.98, 0.98 * 0.93**7, -0.98 * 0.93**4):
            other = clipped(w, torch.full((6, 1), share), widths)
            assert (error <= ((w - other).square() * energy).sum(dim=1) + 1e-6).all()


def test_maps_diverge_as_the_sum_over_single_probabilities():
    draws = torch.Generator().manual_seed(0)
    p, q = (torch.randn(1, 2, 3, 5, generator=draws).softmax(dim=-1) for _ in range(2))
    p[..., 4], q[..., 4] = 0.0, 0.0  # hidden by a mask
    slow = 0.0
    for h in range(2):
        for i in range(3):
            for k in range(4):
                a, b = float(p[0, h, i, k]), float(q[0, h, i, k])
                slow += (a * math.log(a / b) + b * math.log(b / a)) / 6
    assert float(divergence(p, q)) == pytest.approx(slow, rel=1e-5)  # sums in float32
    assert float(divergence(p, p)) == 0.0 and float(divergence(q, p)) == pytest.approx(slow, rel=1e-5)
    x = torch.randn(1, 3, 8, generator=draws)
    assert float(distance(x, x)) == pytest.approx(0.0, abs=1e-6)
    assert float(distance(0.5 * x, x)) == pytest.approx(0.25, rel=1e-5)  # its direction is right


def runner_of(variant: str, folder, maps: bool = False) -> tuple[BlockRunner, torch.Tensor]:
    """A tiny model, and the inputs of its first block for two sequences."""
    tiny_model(variant, folder)
    source = SourceModel(folder)
    runner = BlockRunner(source, model_spec(source.config), maps=maps)
    return runner, runner.embed(np.arange(3, 43).reshape(2, 20))


FAMILIES = ["llama", "qwen2", "gemma2", "phi3", "stablelm parallel", "gpt_neox", "opt", "cohere2", "gpt2"]


@pytest.mark.parametrize("variant", FAMILIES)
def test_smoothing_changes_nothing(variant, tmp_path):
    runner, hidden = runner_of(variant, tmp_path)
    draws = torch.Generator().manual_seed(1)
    block = runner.load_block(1)
    expected = runner.run(block, hidden)
    before = {name: p.clone() for name, p in block.named_parameters()}
    for site in sites(runner.spec, 1):
        channels = runner.spec.hidden_size if site.rows is None else len(site.rows)
        fold(block, site, torch.exp(0.5 * torch.randn(channels, generator=draws)), runner.spec.norm_offset)
    assert sum(not torch.equal(p, before[name]) for name, p in block.named_parameters()) >= 2
    found = runner.run(block, hidden)
    # float32, other factors
    assert float((found - expected).abs().max()) <= 2e-5 * float(expected.abs().max())


@pytest.mark.parametrize("variant", ["llama", "gpt2", "opt"])
def test_a_block_gets_better_and_is_stored_as_it_was_trained(variant, tmp_path):
    runner, hidden = runner_of(variant, tmp_path, maps=True)
    block, source = runner.load_block(0), runner.load_block(0)
    wanted = runner.run(source, hidden)
    round_inputs(block, runner.spec.names(0).linears(), 8)
    own = settings_of(3, block_steps=25, tune_batch=2)
    results, followed, found = calibrated_block(runner, own, (block, source), 0, (hidden, hidden))
    torch.testing.assert_close(followed, wanted)
    assert found.after < 0.97 * found.before
    assert set(results) == set(runner.spec.names(0).linears())
    assert any(float((factors - 1).abs().max()) > 0.01 for factors in found.factors)
    error = float((runner.run(block, hidden) - wanted).square().mean() / wanted.square().mean())
    plain = runner.load_block(0)
    round_inputs(plain, runner.spec.names(0).linears(), 8)
    for name in runner.spec.names(0).linears():
        module = plain.get_submodule(name)
        weight = rtn.quantize(get_weight(module), None, QuantizeSettings(method="rtn", bits=3)).dequantized()
        set_weight(module, weight)
    rounded = float((runner.run(plain, hidden) - wanted).square().mean() / wanted.square().mean())
    assert error < rounded
    # the loss that training ended with is that of what is stored, rounded scales aside
    with Objective(runner, (block, source), hidden, followed) as objective, torch.no_grad():
        stored = sum(float(objective(i)) for i in range(2)) / 2
    assert stored == pytest.approx(found.after, rel=0.05)


def test_attention_maps_are_seen(tmp_path):
    """Without them the loss of a block whose queries are wrong would be that of its outputs alone."""
    for maps in (False, True):
        runner, hidden = runner_of("llama", tmp_path / str(maps), maps=maps)
        block, source = runner.load_block(0), runner.load_block(0)
        followed = runner.run(source, hidden)
        with torch.no_grad():
            block.get_submodule("self_attn.q_proj").weight.mul_(1.2)
        with Objective(runner, (block, source), hidden, followed) as objective, torch.no_grad():
            found = runner.forward(block, hidden[:1])
            outputs = 2 * float(distance(found, followed[:1]))
            loss = float(objective(0))
        assert (loss > 1.05 * outputs) if maps else (loss == pytest.approx(outputs, rel=1e-4))


def test_a_worse_end_gives_way_to_the_start(tmp_path, monkeypatch):
    runner, hidden = runner_of("llama", tmp_path)
    blocks = runner.load_block(0), runner.load_block(0)
    monkeypatch.setattr(calibration, "_CLIPPING_RATE", 50.0)
    found = calibrated_block(runner, settings_of(3, block_steps=2), blocks, 0, (hidden, hidden))[2]
    assert found.after == found.before


def test_every_reader_has_one_site(tmp_path):
    for variant in (v for v in TINY if not is_mixture(v)):
        if variant.split()[0] not in ("llama", "phi3", "lfm2", "cohere2", "qwen3_5_text"):
            continue
        tiny_model(variant, tmp_path / variant)
        spec = model_spec(SourceModel(tmp_path / variant).config)
        for number in range(spec.blocks):
            readers = [name for site in sites(spec, number) for name in site.readers]
            assert len(readers) == len(set(readers)) and set(readers) <= set(spec.names(number).linears())


def test_a_tokens_largest_channel_learns_what_it_costs_the_others():
    """The unit's gradient: rounding errors of all channels, in units, go to the channel that sets it."""
    x = torch.tensor([[8.0, 0.3, -1.9, 3.1]], requires_grad=True)
    whole(x, 4).sum().backward()
    unit = 8.0 / 7
    errors = [round(value / unit) - value / unit for value in (8.0, 0.3, -1.9, 3.1)]
    assert x.grad is not None and abs(sum(errors)) > 0.1
    np.testing.assert_allclose(x.grad[0], [1 + sum(errors) / 7, 1, 1, 1], rtol=1e-5)  # float32
