"""The KL of two models some positions at a time: values and gradients are those of automatic differentiation."""

from __future__ import annotations

import copy
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.export.graph.families import TINY, tiny_model
from toolchain.calibrate.own_text import whole_model
from toolchain.source.heads import open_model
from toolchain.tune.divergence import Parted, divergence


def expected(found, wanted):
    target = torch.log_softmax(wanted, -1)
    return (target.exp() * (target - torch.log_softmax(found, -1))).sum(-1).mean()


@settings(max_examples=20)
@given(st.integers(1, 3), st.integers(1, 150), st.integers(2, 40), st.integers(0, 1000))
def test_the_divergence_and_its_gradients_are_those_of_automatic_differentiation(count, length, vocabulary, seed):
    draws = torch.Generator().manual_seed(seed)
    states = torch.randn(count, length, 6, generator=draws).requires_grad_()
    wanted = 5 * torch.randn(count, length, vocabulary, generator=draws)
    head = nn.Linear(6, vocabulary)
    plain = expected(head(states), wanted)
    loss = divergence(states, head, wanted, nn.Identity(), list(head.parameters()))
    torch.testing.assert_close(loss, plain)
    asked = [states, *head.parameters()]
    for own, other in zip(torch.autograd.grad(3 * loss, asked), torch.autograd.grad(3 * plain, asked)):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-4)  # sums in another order


@pytest.mark.parametrize("name", TINY)
def test_a_model_in_two_parts_is_the_whole_in_every_family(tmp_path, name):
    tiny_model(name, tmp_path)
    model = whole_model(open_model(tmp_path)[0])
    tokens = torch.from_numpy(np.random.default_rng(0).integers(5, 60, (2, 12)))
    norms = {n: p.requires_grad_() for n, p in model.named_parameters() if p.ndim == 1}
    whole = model(input_ids=tokens, use_cache=False).logits
    wanted = whole.detach() + torch.randn(whole.shape, generator=torch.Generator().manual_seed(0))
    plain = torch.autograd.grad(expected(whole, wanted), norms.values(), allow_unused=True)
    parts = Parted(model)
    states, head = parts.states(tokens)
    # the head is apart, with what follows it; OPT's head reads a part of its body
    assert name.split()[0] == "opt" or states.shape[2] != whole.shape[2]
    torch.testing.assert_close(torch.cat([head(states[:, :5]), head(states[:, 5:])], 1), whole, atol=1e-5, rtol=1e-5)
    assert torch.equal(model(input_ids=tokens, use_cache=False).logits, whole)  # as before
    loss = divergence(states, head, wanted, nn.Identity(), parts.trained)
    for n, own, other in zip(norms, torch.autograd.grad(loss, norms.values(), allow_unused=True), plain):
        assert (own is None) == (other is None), n
        if own is not None:
            torch.testing.assert_close(own, other, atol=2e-6, rtol=2e-3, msg=n)  # float32 sums over all blocks


def test_a_copy_of_a_model_in_parts_computes_with_its_own_weights(tmp_path):
    tiny_model("llama", tmp_path)
    model = whole_model(open_model(tmp_path)[0])
    tokens = torch.from_numpy(np.random.default_rng(0).integers(5, 60, (1, 12)))
    Parted(model)
    before = model(input_ids=tokens, use_cache=False).logits
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(other(input_ids=tokens, use_cache=False).logits, before) and float(before.abs().max()) > 0
    states, head = Parted(other).states(tokens)
    torch.testing.assert_close(head(states), before)


def test_threads_have_parts_of_their_own(tmp_path):
    tiny_model("llama", tmp_path)
    model = whole_model(open_model(tmp_path)[0])
    texts = [torch.from_numpy(np.random.default_rng(seed).integers(5, 60, (1, 20))) for seed in range(4)]
    wanted = [model(input_ids=tokens, use_cache=False).logits for tokens in texts]
    parts, found, start = Parted(model), {}, threading.Barrier(4)

    def run(number):
        start.wait()
        for _ in range(10):
            states, head = parts.states(texts[number])
            found[number] = torch.cat([head(states[:, at : at + 7]) for at in range(0, 20, 7)], 1)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, logits in enumerate(wanted):
        torch.testing.assert_close(found[number], logits)
