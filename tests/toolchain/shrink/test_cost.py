"""What a token is said to take, from one layer of each kind, against the graph of the whole model."""

from __future__ import annotations

import pytest
from transformers import Qwen3Config

from hw_model.estimate import open_target, price
from hw_model.graph_work.workload import Phase, operations
from tests.toolchain.shrink.conftest import random_folder
from toolchain.pipeline.hollow import hollow_graph
from toolchain.settings.quantize import QuantizeSettings
from toolchain.settings.shrinking.shrink import BudgetSettings
from toolchain.shrink.parts.budget import Budget
from toolchain.shrink.parts.cost import TokenCosts
from toolchain.shrink.parts.cut import Sizes
from toolchain.shrink.parts.family import Freedom
from toolchain.source.heads import open_model


def test_one_layer_of_each_kind_tells_what_the_whole_graph_does(tmp_path):
    changed = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1, "num_hidden_layers": 4}
    source, spec = open_model(random_folder(tmp_path / "m", Qwen3Config, **changed))
    assert len(set(spec.sliding_window)) == 2
    freedom = Freedom(source, spec)
    for target in ("rpi5", "rap"):
        costs = TokenCosts(freedom, spec, BudgetSettings(keep=0.5, target=target, priced_context=100))
        layers, sizes = (0, 1, 3), Sizes(3, 2, 1, 32)
        graph = hollow_graph(
            freedom.config(sizes, layers), QuantizeSettings(bits=4, passes=1), _folder(tmp_path / target)
        )
        phase = Phase.of("decode", 100)
        whole = price(operations(graph, phase), phase, open_target(target), ranged=False)
        found = costs.report(sizes, layers)
        assert found.latency_s == pytest.approx(whole.latency_s, rel=1e-9)  # sums in another order
        assert found.energy_j == pytest.approx(whole.energy_j, rel=1e-9)


def _folder(path):
    path.mkdir()
    return path


def test_an_even_cut_is_the_widest_that_fits(tiny):
    source, spec = open_model(tiny)
    freedom = Freedom(source, spec)
    for asked in (BudgetSettings(keep=0.7), BudgetSettings(latency="58us", priced_context=64)):
        costs = TokenCosts(freedom, spec, asked)
        budget, own = Budget(spec, asked, costs), Sizes.of(spec)
        if asked.limit is not None:
            full, least = costs.of(own, "s"), costs.of(Sizes(3, 1, 1, 8), "s")
            asked = BudgetSettings(latency=f"{(full + least) / 2 * 1e6}us", priced_context=64)
            budget = Budget(spec, asked, costs)
        sizes = budget.even(freedom, 8)
        assert budget.fits(sizes) and sizes.layers == own.layers
        wider = Sizes(sizes.layers, sizes.heads, sizes.kv_heads, sizes.feed_forward + 8)
        assert not budget.fits(wider)
