"""Search and loraprune: what they promise of budgets, orders and gradients, and that a stopped run ends alike."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.toolchain.shrink.test_command import QUICK, shrink, shrunk
from toolchain.shrink.methods import loraprune, search
from toolchain.shrink.methods.loraprune import estimated_gradient, share_gone, sizes_at
from toolchain.shrink.methods.search import Evolution, Genome
from toolchain.shrink.parts.cut import Sizes
from toolchain.shrink.parts.importance import measured_importance
from toolchain.source.heads import open_model

FAST = [*QUICK, "--multiple", 8, "--scored-sequences", 2]


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 99))
def test_children_are_genomes(layers, heads, seed):
    evolution = Evolution(layers, heads, seed)
    parents = evolution.first(np.arange(layers), lambda genome: len(genome.layers) < layers - 1, 5)
    assert parents[0] == Genome(tuple(range(layers)), heads - 1) and len(parents) <= 5
    assert all(len(genome.layers) >= layers - 2 for genome in parents)
    for _ in range(20):
        child = evolution.child(parents)
        assert child.layers and sorted(set(child.layers)) == list(child.layers)
        assert max(child.layers) < layers and 0 <= child.heads < heads


def test_a_search_stays_within_the_latency_and_ends_where_a_stopped_one_does(tiny, tmp_path, monkeypatch):
    whole = shrunk(tiny, "-o", tmp_path / "dry", "--keep", 0.9, "--dry-run", *FAST)["cost"]["before"]["latency_s"]
    asked = [tiny, "--by", "search", "--latency", f"{0.8 * whole}s", *FAST, "--generations", 2, "--children", 4]
    asked += ["--population", 3]
    report = shrunk(*asked, "-o", tmp_path / "whole")
    assert report["cost"]["after"]["latency_s"] <= 0.8 * whole
    history = report["search"]["best_by_generation"]
    assert history == sorted(history, reverse=True) and report["search"]["loss"] == history[-1]
    errors = report["layer_errors"]
    assert all(after <= before for before, after in zip(errors["cut"], errors["fitted"]))
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "whole").config.num_hidden_layers == len(
        report["cut"]["layers"]
    )

    save, count = search.Fitness.save, [0]

    def stops(self):
        save(self)
        count[0] += 1
        if count[0] == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(search.Fitness, "save", stops)
    shrink(*asked, "-o", tmp_path / "OUT", code=130)
    monkeypatch.setattr(search.Fitness, "save", save)
    again = shrunk(*asked, "-o", tmp_path / "OUT")
    assert {**again, "output": ""} == {**report, "output": ""}


def test_importance_is_what_a_layer_reads(tiny):
    source, spec = open_model(tiny)
    tokens = np.random.default_rng(0).integers(3, 1500, (2, 20))
    found = measured_importance(source, spec, tokens, "float32")
    model, inputs = AutoModelForCausalLM.from_pretrained(tiny).eval(), []
    down = model.model.layers[1].mlp.down_proj
    down.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
    with torch.no_grad():
        for row in tokens:
            model(torch.from_numpy(row)[None])
    energy = torch.cat(inputs, dim=1)[0].square().mean(dim=0) * down.weight.square().sum(dim=0)
    assert np.allclose(found.channels[1], 2 * energy.detach().numpy(), rtol=1e-3)


@given(st.integers(0, 50))
def test_the_estimated_gradient_is_the_change_of_the_product(seed):
    draws = torch.Generator().manual_seed(seed)
    a, of_a = (torch.randn(2, 5, generator=draws, dtype=torch.float64) for _ in range(2))
    b, of_b = (torch.randn(4, 2, generator=draws, dtype=torch.float64) for _ in range(2))
    step = b @ a - (b - of_b) @ (a - of_a)
    assert torch.allclose(estimated_gradient(a, b, of_a, of_b), step)


@given(st.integers(10, 500))
def test_the_schedule_begins_with_all_and_ends_at_the_aim(steps):
    gone = [share_gone(step, steps) for step in range(steps + 1)]
    assert gone[0] == 0 and gone[-1] == 1 and gone == sorted(gone)
    own, aim = Sizes(3, 12, 4, 96), Sizes(3, 4, 2, 40)
    sizes = [sizes_at(own, aim, share) for share in gone]
    assert sizes[0] == own and sizes[-1] == aim
    assert all(one.feed_forward >= other.feed_forward for one, other in pairwise(sizes))


def test_loraprune_trains_cuts_and_goes_on(tiny, tmp_path, monkeypatch):
    asked = [tiny, "--by", "loraprune", "--keep", 0.6, *FAST, "--prune-steps", 10, "--prune-batch", 2]
    report = shrunk(*asked, "-o", tmp_path / "whole")
    assert 0.4 < report["linear_weights"]["after"] / report["linear_weights"]["before"] <= 0.6
    step = loraprune.AdapterPruning._train_step

    def stops(self):
        if self.step == 4:
            self._save()
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(loraprune.AdapterPruning, "_train_step", stops)
    shrink(*asked, "-o", tmp_path / "OUT", code=130)
    monkeypatch.setattr(loraprune.AdapterPruning, "_train_step", step)
    shrink(*asked, "-o", tmp_path / "OUT")
    found, wanted = (load_file(tmp_path / name / "model.safetensors") for name in ("OUT", "whole"))
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_states_that_are_none_are_not_believed(tmp_path):
    for text in ('{"losses": 3}', '{"losses": {"a": "b", "c": true}}', "{}"):
        (tmp_path / "search.json").write_text(text)
        assert search._read(tmp_path / "search.json") == {}
    assert search._read(tmp_path / "none.json") == {}
