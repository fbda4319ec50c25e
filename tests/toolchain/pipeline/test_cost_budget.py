"""A budget of time or energy: the widths that it gives cost what the exported folder costs, and no more than asked."""

from __future__ import annotations

from dataclasses import replace

import pytest

from export.contract.errors import InputError
from export.files.access import read_json
from hw_model.estimate import estimate
from hw_model.graph_work.workload import Phase, operations
from tests.conftest import _package
from tests.export.graph.families import random_text, tiny_model
from toolchain.pipeline.allocation import PLAN_FILE, _within
from toolchain.pipeline.costs import Prices
from toolchain.pipeline.hollow import hollow_graph
from toolchain.pipeline.run import CalibrationChoice, open_source, quantize_model
from toolchain.settings.quantize import QuantizeSettings
from toolchain.source.config import resolved_config

SMALL = {"passes": 0, "sequences": 2, "sequence_length": 16, "bits": None}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cost") / "source"
    tiny_model("llama", folder)
    return folder


def prices(folder, **settings) -> Prices:
    asked = QuantizeSettings(**{**SMALL, "budget_context": 20, **settings})
    opened, spec = open_source(folder, asked)
    return Prices(opened.config, spec, asked)


def between(folder, target: str, unit: str, bits: float) -> float:
    """What lies so far between the costs of whole widths."""
    found = prices(folder, budget=f"1{unit}", budget_target=target)
    low, high = (found.of(dict.fromkeys(found.layers, b)) for b in (int(bits), int(bits) + 1))
    return low + (bits - int(bits)) * (high - low)


@pytest.mark.parametrize("target, unit", [("rpi5", "s"), ("rpi5", "J"), ("rap", "J"), ("rap", "s")])
def test_a_plan_costs_what_the_export_costs(source, tmp_path, target, unit):
    asked = between(source, target, unit, 3.5)
    settings = QuantizeSettings(**SMALL, budget=f"{asked:.9e}{unit}", budget_target=target, budget_context=20)
    text = CalibrationChoice(str(random_text(tmp_path / "text.txt")))
    checkpoint = quantize_model(str(source), tmp_path / "q", settings, text, quiet=True)
    report = estimate(_package(checkpoint, tmp_path / "model"), [target], "decode", 20)[0]
    cost = report.latency_s if unit == "s" else report.energy_j
    assert cost <= asked * 1.002  # a scale's unit is float32 where weights are as small as these
    plan = read_json(tmp_path / "q" / PLAN_FILE)["bits"]
    assert prices(source, budget=settings.budget, budget_target=target).of(plan) == pytest.approx(cost, rel=2e-3)


@pytest.mark.parametrize("form", [{}, {"format": "trellis"}, {"group_size": 16, "method": "rtn"}])
def test_a_hollow_graph_has_the_work_of_the_export(source, tmp_path, form):
    settings = QuantizeSettings(**{**SMALL, "bits": 3, **form})
    text = CalibrationChoice(str(random_text(tmp_path / "text.txt")))
    checkpoint = quantize_model(str(source), tmp_path / "q", settings, text, quiet=True)
    from export.artefacts.reader import read_graph

    made = read_graph(_package(checkpoint, tmp_path / "model"))
    (tmp_path / "hollow").mkdir()
    config = resolved_config(read_json(source / "config.json"), source / "config.json")
    hollow = hollow_graph(config, settings, tmp_path / "hollow")
    phase = Phase.of("decode", 20)
    ours, theirs = (
        {op.name: (op.macs, op.cache_read_bytes, op.vector_ops, op.weight_bytes) for op in operations(graph, phase)}
        for graph in (hollow, made)
    )
    assert ours.keys() == theirs.keys()
    for name, (*work, size) in ours.items():
        scales = (
            work[0] // form["group_size"] if "group_size" in form else 1
        )  # float32 where float16 is planned, as above
        assert work == list(theirs[name][:3]) and size == pytest.approx(theirs[name][3], abs=2 * scales)


def test_more_money_buys_no_more_loss(source):
    """The knapsack over costs: losses fall as the budget grows, and the whole stays within it."""
    losses_of = {bits: 4.0**-bits for bits in range(1, 9)}
    last = float("inf")
    for share in (1.5, 2.5, 3.0, 3.7, 5.2, 7.9):
        asked = between(source, "rpi5", "s", share)
        found = prices(source, budget=f"{asked:.9e}s", budget_target="rpi5")
        names = [[name] for name in found.layers]
        plan = _within(found, names, [[losses_of[b] for b in found.widths] for _ in names])
        assert set(plan) == set(found.layers) and found.of(plan) <= found.budget
        loss = sum(losses_of[b] for b in plan.values())
        assert loss <= last
        last = loss


def test_what_cannot_be_met_is_refused(source):
    with pytest.raises(InputError, match="rpi5 takes .*s a token at one bit already"):
        prices(source, budget="1ns", budget_target="rpi5")
    with pytest.raises(InputError, match="target 'abacus' is unknown"):
        prices(source, budget="1s", budget_target="abacus")
    assert prices(source, budget="100s", budget_target="rpi5").widths[-1] == 8


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"budget": "45ms"}, "--target goes with"), ({"budget": 3.5, "budget_target": "rpi5"}, "--target goes with"),
        ({"budget": "soon"}, "effective bits such as 3.25"),
        ({"budget": "-3ms", "budget_target": "rpi5"}, "effective bits"),
        ({"budget": "0ms", "budget_target": "rpi5"}, "effective bits"), ({"budget": "9.5"}, "must be 1 to 8"),
        ({"budget": "1e999J", "budget_target": "rpi5"}, "effective bits"),
        ({"budget": "45ms", "budget_target": "rpi5", "rank": 2}, "neither --rank nor --outliers"),
    ],
)  # fmt: skip
def test_budgets_that_say_nothing(settings, message):
    with pytest.raises(InputError, match=message):
        QuantizeSettings(bits=None, **settings)


def test_bits_may_be_typed():
    assert QuantizeSettings(bits=None, budget="3.25").budget == 3.25
    asked = QuantizeSettings(bits=None, budget="45ms", budget_target="rpi5")
    assert asked.cost_budget == (0.045, "s") and replace(asked, budget="12 mJ").cost_budget == (0.012, "J")
