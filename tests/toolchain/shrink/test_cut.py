"""What is kept by scores, and the tensors of a cut model against the source with zeros in place of what went."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from export.contract.errors import InputError
from tests.toolchain.shrink.conftest import random_folder
from toolchain.shrink.folder import write_folder
from toolchain.shrink.methods.magnitude import magnitudes
from toolchain.shrink.parts.cut import Cut, LayerCut, Sizes, cut_by_scores, highest
from toolchain.shrink.parts.family import Freedom
from toolchain.shrink.parts.slicing import cut_tensors, slices
from toolchain.source.heads import open_model

CUT = Cut((0, 2), (LayerCut((2, 3), (1,), tuple(range(1, 96, 3))), LayerCut((0, 1), (0,), tuple(range(32)))))


@given(st.lists(st.floats(0, 10), min_size=1, max_size=30), st.data())
def test_highest_are_the_largest_in_their_order(scores, data):
    count = data.draw(st.integers(1, len(scores)))
    found = highest(np.asarray(scores), count)
    assert sorted(found) == list(found) and len(set(found)) == count
    left = [s for i, s in enumerate(scores) if i not in set(found)]
    assert not left or min(scores[i] for i in found) >= max(left)


@given(st.integers(1, 4), st.integers(1, 4), st.data())
def test_heads_stay_with_their_keys(kv_heads, group, data):
    class Spec:
        layers, heads, feed_forward = 2, kv_heads * group, 8

    Spec.kv_heads = kv_heads
    kept_groups, kept_each = data.draw(st.integers(1, kv_heads)), data.draw(st.integers(1, group))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    sizes = Sizes(2, kept_groups * kept_each, kept_groups, 5)
    cut = cut_by_scores(sizes, Spec, (0, 1), rng.random((2, Spec.heads)), rng.random((2, 8)))
    assert cut.sizes == sizes
    for part in cut.parts:
        for place, head in enumerate(part.heads):  # as transformers repeats keys: head i sees those of i // group
            assert head // group == part.kv_heads[place // kept_each]


@pytest.mark.parametrize("model", ["tiny", "tiny_qwen"])
def test_a_cut_model_computes_what_the_source_does_with_zeros(model, request, tmp_path):
    folder = request.getfixturevalue(model)
    source, spec = open_model(folder)
    config = Freedom(source, spec).config(CUT.sizes, CUT.layers)
    write_folder(tmp_path / "cut", source, config, cut_tensors(source, spec, CUT), "float32")
    whole, small = (AutoModelForCausalLM.from_pretrained(f).eval() for f in (folder, tmp_path / "cut"))
    with torch.no_grad():
        for layer, part in zip(CUT.layers, CUT.parts):
            block = whole.model.layers[layer]
            for name, kept in slices(spec, part).items():
                if kept.columns is not None:
                    weight = block.get_submodule(name).weight
                    zeros = np.setdiff1d(np.arange(weight.shape[1]), kept.columns)
                    weight[:, torch.from_numpy(zeros)] = 0
        whole.model.layers = torch.nn.ModuleList(whole.model.layers[i] for i in CUT.layers)
        for place, block in enumerate(whole.model.layers):
            block.self_attn.layer_idx = place
        tokens = torch.arange(3, 40)[None]
        wanted, found = (m(tokens, use_cache=False).logits for m in (whole, small))
    assert torch.allclose(found, wanted, atol=1e-4)  # sums in another order


def test_magnitudes_are_sums_over_what_would_go(tiny):
    source, spec = open_model(tiny)
    heads, channels = magnitudes(source, spec)
    model = AutoModelForCausalLM.from_pretrained(tiny)
    block = model.model.layers[1]
    relative = {n: (p := block.get_submodule(n).weight.double() ** 2) / p.mean() for n in spec.block.linears()}
    channel = (
        relative["mlp.gate_proj"][7].sum() + relative["mlp.up_proj"][7].sum() + relative["mlp.down_proj"][:, 7].sum()
    )
    assert channels[1, 7] == pytest.approx(channel.item(), rel=1e-6)
    rows, keys = slice(48, 64), slice(16, 32)  # head 3 sees keys 1
    head = relative["self_attn.q_proj"][rows].sum() + relative["self_attn.o_proj"][:, rows].sum()
    head += relative["self_attn.k_proj"][keys].sum() + relative["self_attn.v_proj"][keys].sum()
    assert heads[1, 3] == pytest.approx(head.item(), rel=1e-6)


def test_numbers_of_heads_are_those_that_transformers_takes(tiny):
    source, spec = open_model(tiny)
    found = {(s.heads, s.kv_heads) for s in Freedom(source, spec).heads}
    assert found == {(4, 2), (2, 2), (2, 1), (1, 1)}


def test_families_that_cannot_be_cut_are_refused(tmp_path):
    from transformers import GPT2Config, MixtralConfig

    small = {"n_embd": 64, "n_layer": 2, "n_head": 4}
    for kind, changed, why in (
        (GPT2Config, small, "stored"),
        (MixtralConfig, {"num_local_experts": 2}, "experts"),
    ):
        folder = random_folder(tmp_path / kind.__name__, kind, **changed)
        with pytest.raises(InputError, match=why):
            Freedom(*open_model(folder))
