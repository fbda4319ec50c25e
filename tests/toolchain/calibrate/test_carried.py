"""Models whose blocks get what differs from sequence to sequence: block by block they compute what the whole does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.export.graph.families import tiny_model
from toolchain.calibrate.blocks import BlockRunner
from toolchain.calibrate.gradients import measure_gradients
from toolchain.numerics.plain_modules import plain_modules
from toolchain.source.heads import open_model

VARIANTS = ("gemma4_text", "gemma4_text large", "gemma4_text experts", "gemma3n_text", "gemma3n_text other stream")
TOKENS = np.random.default_rng(3).integers(0, 96, (3, 11))


def whole(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return plain_modules(model.eval())


@pytest.mark.parametrize("variant", VARIANTS)
def test_states_are_those_of_the_whole_model(variant, tmp_path):
    """Of every block, for sequences that pass it in one call or one by one."""
    tiny_model(variant, tmp_path)
    source, spec = open_model(tmp_path)
    runner, model, expected = BlockRunner(source, spec), whole(tmp_path), []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda module, inputs, output: expected.append(output))
    with torch.no_grad():
        model(input_ids=torch.from_numpy(TOKENS))
    states = runner.embed(TOKENS)
    assert states.shape == (*TOKENS.shape, runner.state_size)
    for number, wanted in enumerate(expected):
        block = runner.load_block(number)
        with torch.no_grad():
            one = runner.forward(block, states[1:2])
        states = runner.run(block, states)
        torch.testing.assert_close(one, states[1:2], atol=1e-5, rtol=1e-5)
        flat = wanted.permute(1, 2, 0, 3).flatten(2) if spec.altup else wanted
        torch.testing.assert_close(runner.visible(states), flat, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("variant", ["gemma4_text", "gemma3n_text"])
def test_gradients_pass_through_shared_keys_and_values(variant, tmp_path):
    tiny_model(variant, tmp_path)
    source, spec = open_model(tmp_path)
    found, model = measure_gradients(source, spec, TOKENS, quiet=True, per_weight=True), whole(tmp_path)
    names = [name for name in spec.quantizable() if "k_proj" in name or "gate" in name]
    weights = [model.get_submodule(name).weight for name in names]
    for weight in weights:
        weight.requires_grad_(True)
    squares = [torch.zeros_like(weight) for weight in weights]
    for row in torch.from_numpy(TOKENS):
        loss = model(input_ids=row[None], labels=row[None]).loss
        for total, gradient in zip(squares, torch.autograd.grad(loss, weights)):
            total += gradient.square()
    assert any("k_proj" in name for name in names)
    for name, wanted in zip(names, squares):
        np.testing.assert_allclose(found.weights[name], wanted.numpy(), rtol=2e-3, atol=1e-6 * float(wanted.max()))
