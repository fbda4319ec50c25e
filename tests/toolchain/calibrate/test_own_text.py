"""Windows that the model writes itself: reproducible, in the model's own distribution, mixed into tuning as asked."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.export.graph.families import TINY, tiny_model
from toolchain.calibrate.own_text import PROMPT, OwnText, continued, drawn, whole_model
from toolchain.source.checkpoint import SourceModel
from toolchain.system.threads import fixed_rounding
from toolchain.tune.end_to_end import Tuner, TuneSettings


@pytest.fixture(scope="module")
def model(demo_model):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(demo_model, dtype=torch.float32).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def text():
    return np.random.default_rng(0).integers(0, 512, 3000)


def test_windows_depend_on_seed_and_place_alone(model, text, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with fixed_rounding():
        alone = OwnText(model, text, 24, seed=3).windows(250, 10)  # across two chunks
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    with fixed_rounding():
        own = OwnText(model, text, 24, seed=3)
        assert np.array_equal(own.windows(255, 3), alone[5:8]) and np.array_equal(own.windows(250, 2), alone[:2])
    assert alone.shape == (10, 24) and len(np.unique(alone, axis=0)) == 10
    assert not np.array_equal(OwnText(model, text, 24, seed=4).windows(250, 10), alone)
    runs = {tuple(text[i : i + PROMPT]) for i in range(len(text) - PROMPT + 1)}
    assert all(tuple(window[:PROMPT]) in runs for window in alone)
    assert own.windows(0, 0).shape == (0, 24)


def test_tokens_are_drawn_from_the_model_s_distribution(model, text):
    """With and without the cache: frequencies of the last token against softmax, 4,000 draws, five standard errors."""
    prompt = torch.from_numpy(text[None, :6])
    first = torch.softmax(model(input_ids=prompt).logits[0, -1], dim=-1)
    rows = continued(model, np.repeat(prompt.numpy(), 4000, axis=0), 8, torch.Generator().manual_seed(1))
    assert np.array_equal(rows[:, :6], np.repeat(prompt.numpy(), 4000, axis=0))
    likely = first.topk(500)
    longer = torch.cat([prompt.repeat(500, 1), likely.indices[:, None]], dim=1)
    second = likely.values @ torch.softmax(model(input_ids=longer).logits[:, -1], dim=-1)
    for position, expected in ((6, first), (7, second / likely.values.sum())):
        found = np.bincount(rows[:, position], minlength=1536) / 4000
        p = expected.numpy().astype(np.float64)
        rest = 1.0 - float(likely.values.sum()) if position == 7 else 0.0  # first tokens that were left out
        assert (np.abs(found - p) < 5 * np.sqrt(p * (1 - p) / 4000) + 1e-3 + rest).all()


def test_what_is_impossible_is_never_drawn():
    """Nor is a token past the last: shares whose sum rounds, certain tokens, the first and the last of them."""
    draws, vocabulary = torch.Generator().manual_seed(0), 1000
    shares = torch.zeros(4000, vocabulary)
    shares[:, 7::10] = 0.01
    shares[0], shares[1], shares[2] = (torch.eye(vocabulary)[i] for i in (0, 500, vocabulary - 1))
    for _ in range(20):
        found = drawn(shares, draws)
        assert found.shape == (4000, 1) and found.dtype == torch.int64
        assert found[:3, 0].tolist() == [0, 500, vocabulary - 1] and (found[3:] % 10 == 7).all()


@pytest.mark.parametrize("share, own", [(0.0, 0), (0.5, 2), (1.0, 4)])
def test_a_step_takes_its_share(model, text, share, own, tmp_path):
    import copy

    windows = text[: 20 * 32].reshape(20, 32)
    tuner = Tuner(model, copy.deepcopy(model), windows, TuneSettings(5, 0.01, 3, 4, 7, share), tmp_path)
    step = tuner._windows_of(3)
    assert step.shape == (4, 32) and np.array_equal(step, tuner._windows_of(3))
    runs = {tuple(text[i : i + 32]) for i in range(20 * 32 - 31)}
    assert [tuple(row) in runs for row in step] == [False] * own + [True] * (4 - own)
    assert not np.array_equal(tuner._windows_of(4), step)


@pytest.mark.parametrize("variant", TINY)
def test_the_cache_serves_every_family(variant, tmp_path):
    """The logits that tokens are drawn from are those of one pass over the whole window."""
    from transformers import AutoModelForCausalLM

    tiny_model(variant, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    seen = []
    handle = model.register_forward_hook(lambda module, inputs, output: seen.append(output.logits[:, -1]))
    prompts = np.random.default_rng(0).integers(0, 96, (2, 6))
    rows = continued(model, prompts, 20, torch.Generator().manual_seed(0))
    handle.remove()
    with torch.no_grad():
        whole = model(input_ids=torch.from_numpy(rows), use_cache=False).logits
    np.testing.assert_allclose(torch.stack(seen, dim=1).numpy(), whole[:, 5:-1].numpy(), atol=1e-4)


@pytest.mark.parametrize("variant", ["granitemoehybrid", "nemotron_h", "falcon_h1"])
def test_a_whole_model_is_built_from_what_the_source_gives(variant, tmp_path):
    """Experts go to transformers' loader as it takes them."""
    from transformers import AutoModelForCausalLM

    tiny_model(variant, tmp_path)
    ids = torch.arange(3, 15)[None]
    models = (
        whole_model(SourceModel(tmp_path)),
        AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval(),
    )
    with torch.no_grad():
        ours, theirs = (model(input_ids=ids, use_cache=False).logits for model in models)
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), atol=1e-5)
