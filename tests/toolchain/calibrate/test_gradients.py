"""Gradients block by block are those of the whole model, whether those of weights are asked for or not."""

from __future__ import annotations

import gc
import json
import weakref

import numpy as np
import pytest
import torch

from tests.export.graph.families import MIXTURES, TINY, is_mixture, random_text, tiny_model
from toolchain.calibrate import gradients
from toolchain.calibrate.blocks import BlockRunner
from toolchain.calibrate.gradients import measure_gradients, weight_of
from toolchain.calibrate.own_text import whole_model
from toolchain.pipeline.run import quantize_model
from toolchain.quantize.methods import athena
from toolchain.settings.calibration import CalibrationChoice
from toolchain.settings.quantize import QuantizeSettings
from toolchain.source.heads import open_model


@pytest.mark.parametrize("family", TINY)
def test_gradients_of_outputs_need_no_gradients_of_weights(family, tmp_path):
    tiny_model(family, tmp_path)
    source, spec = open_model(tmp_path)
    tokens = np.random.default_rng(0).integers(0, spec.vocab_size, (2, 12))
    alone = measure_gradients(source, spec, tokens, quiet=True, per_weight=False)
    beside = measure_gradients(source, spec, tokens, quiet=True, per_weight=True)
    assert not alone.weights and alone.outputs.keys() == beside.weights.keys() == set(spec.quantizable())
    for name, values in alone.outputs.items():
        assert values.any() or (is_mixture(family) and not beside.weights[name].any())  # no token reaches it
        np.testing.assert_array_equal(values, beside.outputs[name])


@pytest.mark.parametrize("family", MIXTURES)
def test_what_a_router_reports_has_no_part_in_them(family, tmp_path):
    """output_router_logits adds a loss of the router's own to what transformers' models return."""
    tiny_model(family, tmp_path)
    path, found = tmp_path / "config.json", []
    for more in ({}, {"output_router_logits": True, "router_aux_loss_coef": 5.0}):
        path.write_text(json.dumps({**json.loads(path.read_text()), **more}))
        source, spec = open_model(tmp_path)
        tokens = np.random.default_rng(2).integers(0, spec.vocab_size, (2, 12))
        found.append(measure_gradients(source, spec, tokens, quiet=True, per_weight=False).outputs)
    for name, values in found[0].items():
        np.testing.assert_array_equal(found[1][name], values)


def of_the_whole_model(source, spec, tokens):
    """Squared gradients by name, computed at once by torch: of outputs [sequences, length, N], and of weights."""
    model, outputs, weights = whole_model(source), {}, {}
    modules = {name: model.get_submodule(name) for name in spec.quantizable()}
    for module in modules.values():
        weight_of(module).requires_grad_(True)
    for row in tokens:
        found = {}
        handles = [
            m.register_forward_hook(lambda m, i, o, n=n, to=found: to.update({n: o})) for n, m in modules.items()
        ]
        ids = torch.from_numpy(row[None])
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        wanted = torch.autograd.grad(loss, [*found.values(), *(weight_of(modules[n]) for n in found)])
        for name, output, weight in zip(found, wanted, wanted[len(found) :]):
            outputs.setdefault(name, []).append(output.reshape(-1, output.shape[-1]).square().numpy())
            weights[name] = weights.get(name, 0) + weight.square().numpy()
        for handle in handles:
            handle.remove()
    return {name: np.stack(rows) for name, rows in outputs.items()}, weights


@pytest.mark.parametrize("family", [family for family in TINY if not is_mixture(family)])
@pytest.mark.parametrize("together", [1, 2])
def test_they_are_those_of_the_whole_model(family, together, tmp_path, monkeypatch):
    """Of mixtures, whose experts have tokens of their own, in test_routing.py."""
    monkeypatch.setattr(gradients, "sequences_together", lambda runner, length: together)
    tiny_model(family, tmp_path)
    source, spec = open_model(tmp_path)
    tokens = np.random.default_rng(1).integers(0, spec.vocab_size, (3, 12))
    found = measure_gradients(source, spec, tokens, quiet=True, per_weight=True)
    outputs, weights = of_the_whole_model(source, spec, tokens)
    assert outputs.keys() == found.outputs.keys() == set(spec.quantizable())
    for name, values in outputs.items():
        expected = values.mean(axis=-1)
        np.testing.assert_allclose(found.outputs[name][0], expected, rtol=1e-3, atol=1e-5 * expected.max())
        by_row = values.mean(axis=(0, 1))
        np.testing.assert_allclose(found.rows[name], by_row, rtol=1e-3, atol=1e-5 * by_row.max())
        turned = weights[name].T if spec.linear_is_transposed else weights[name]
        np.testing.assert_allclose(found.weights[name], turned, rtol=1e-3, atol=1e-5 * turned.max())


def test_tokens_weigh_half_alike_and_half_by_their_squares():
    squares = np.random.default_rng(0).exponential(1e-9, (2, 3, 40)).astype(np.float32)
    found = gradients.token_weights(squares)
    assert found.dtype == np.float32 and found.shape == squares.shape
    np.testing.assert_allclose(found, 1 + squares / squares.mean(axis=(1, 2), keepdims=True), rtol=1e-5)  # float32
    np.testing.assert_array_equal(gradients.token_weights(np.zeros((1, 2, 3), np.float32)), np.ones((1, 2, 3)))


def test_rows_weigh_half_alike_and_half_by_their_squares():
    squares = np.array([1e-9, 4e-9, 0.0, 3e-9], np.float32)
    found = gradients.row_weights(squares)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [0.75, 1.5, 0.5, 1.25], rtol=1e-6)
    np.testing.assert_allclose(gradients.row_weights(1e6 * squares), found, rtol=1e-6)


def test_gradients_of_some_sequences_weigh_the_tokens_of_those():
    squares = np.random.default_rng(1).exponential(1.0, (1, 2, 7)).astype(np.float32)
    chosen = gradients.evenly_spread(2, 6)
    assert chosen.tolist() == [0, 3] and gradients.evenly_spread(9, 4).tolist() == [0, 1, 2, 3]
    found = gradients.Gradients({}, {"layer": squares}).among(chosen, 6).outputs["layer"]
    weights = gradients.token_weights(found)
    np.testing.assert_array_equal(weights[:, [1, 2, 4, 5]], np.ones((1, 4, 7)))
    np.testing.assert_allclose(weights[:, chosen], 1 + 3 * squares / squares.mean(), rtol=1e-5)  # float32
    np.testing.assert_allclose(weights.mean(), 2.0, rtol=1e-5)


def test_guided_by_the_gradients_of_some_sequences(tmp_path):
    """All of them by number are all of them; fewer give another checkpoint."""
    tiny_model("llama", tmp_path / "source")
    random_text(tmp_path / "text.txt")
    choice = CalibrationChoice(str(tmp_path / "text.txt"))

    def made(sequences: int) -> dict[str, bytes]:
        out = tmp_path / str(sequences)
        options = {"guided": True, "gradient_sequences": sequences, "asymmetric": True, "passes": 1, "bits": 3}
        settings = QuantizeSettings(sequences=4, sequence_length=32, **options)
        quantize_model(str(tmp_path / "source"), out, settings, choice, quiet=True)
        return {path.name: path.read_bytes() for path in out.glob("*.safetensors")}

    assert made(0) == made(4) == made(9) != made(2)


@pytest.mark.parametrize("guided", [True, False])
def test_trellis_codes_of_a_guided_run_get_the_weights_of_their_rows(guided, tmp_path, monkeypatch):
    tiny_model("llama", tmp_path / "source")
    random_text(tmp_path / "text.txt")
    given, original = [], athena.quantize_trellis

    def noting(weights, hessian, settings, layout, standard, solver, rows):
        given.append(rows)
        return original(weights, hessian, settings, layout, standard, solver, rows)

    monkeypatch.setattr(athena, "quantize_trellis", noting)
    options = {"guided": guided, "passes": 1, "bits": 3, "format": "trellis"}
    settings = QuantizeSettings(sequences=4, sequence_length=32, **options)
    choice = CalibrationChoice(str(tmp_path / "text.txt"))
    quantize_model(str(tmp_path / "source"), tmp_path / "out", settings, choice, quiet=True)
    assert given
    if guided:
        assert all(rows.min() >= 0.5 and rows.std() > 0 for rows in given)
    else:
        assert all(rows is None for rows in given)


def test_a_block_is_gone_when_its_gradients_are_known(demo_model, monkeypatch):
    """Without the collector of cycles: else many blocks stay, where one is promised."""
    source, spec = open_model(demo_model)
    made, most = [], [0]
    original = BlockRunner.load_block

    def loading(self, number):
        block = original(self, number)
        made.append(weakref.ref(block))
        most[0] = max(most[0], sum(one() is not None for one in made))
        return block

    monkeypatch.setattr(BlockRunner, "load_block", loading)
    gc.disable()
    try:
        measure_gradients(source, spec, np.arange(3, 35).reshape(8, 4), quiet=True, per_weight=False)
    finally:
        gc.enable()
    assert len(made) == 2 * spec.blocks >= 8 and most[0] <= 2
