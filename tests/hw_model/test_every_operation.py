"""No operation is free on any machine: every node of every family and scheme, and every stored byte of outliers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from export.contract.errors import InputError
from export.model_folder import write_model_folder
from hw_model.estimate import estimate, has_rules, open_target, price
from hw_model.graph_work.nodes import FREE
from hw_model.graph_work.workload import Operation, Phase, operations
from targets import target_names
from tests.export.graph.families import FloatCheckpoint, tiny_model
from tests.hw_model.conftest import phases


def cost_alone(op: Operation, phase: Phase, name: str) -> tuple[float, float]:
    """(seconds, J without leakage) of one operation."""
    report = price([op], phase, open_target(name))
    assert len(report.by_kind) == 1 and report.by_kind[0].kind == op.kind and report.by_kind[0].latency_s > 0
    return report.latency_s, sum(c.energy_j for c in report.components if c.name != "leakage")


@pytest.mark.parametrize("name", target_names())
def test_every_operation_costs_time_and_energy(name, graph):
    for phase in phases(graph):
        work = operations(graph, phase)
        if not has_rules(open_target(name), work):
            kinds = "mixture of experts|gated delta rule|selective state space"
            with pytest.raises(InputError, match=f"{name}: there is no rule for a ({kinds})"):
                price(work, phase, open_target(name))
            continue
        for op in {replace(op, name=""): op for op in work}.values():
            assert op.macs + op.vector_ops + op.bytes > 0, op
            seconds, joules = cost_alone(op, phase, name)
            assert seconds > 0 and joules > 0, op
            if op.weight_bytes and op.kind != "linear":  # matrices are priced by their shape
                more = cost_alone(replace(op, weight_bytes=1000 * op.weight_bytes), phase, name)
                assert more > (seconds, joules) and more[1] > joules, op


def test_a_node_is_constant_a_view_or_priced(graph):
    for phase in phases(graph):
        priced, constant = {op.name for op in operations(graph, phase)}, set(graph.weights)
        for node in graph.nodes:
            if all(name in constant for name in node.inputs if name):  # decoded once, when the file is loaded
                constant.update(node.outputs)
            else:
                assert (node.name in priced) != (node.op_type in FREE and not node.domain), node


OUTLIERS = Operation("o", "sparse", vector_ops=2 * 5000, weight_bytes=4 * 5000, activation_bytes=4 * 512)
MATRIX = Operation("w", "linear", macs=256 * 256, weight_bytes=24576, rows=256, columns=256, weight_bits=3.0,
                   activation_bytes=4 * 512)  # fmt: skip


@pytest.mark.parametrize("name", target_names())
@pytest.mark.parametrize("phase", [Phase.of("decode", 20), Phase.of("prefill", 8)], ids=lambda phase: phase.name)
def test_outliers_by_the_unit_that_multiplies_them(name, phase):
    """Twice as many take twice the time and energy of their part; the report says what was assumed, and only then.

    Tokens of a prompt may follow one another through the layers: there the slowest part decides, at first another one.
    """
    ops = replace(OUTLIERS, vector_ops=OUTLIERS.vector_ops * phase.tokens)
    twice = replace(ops, vector_ops=2 * ops.vector_ops, weight_bytes=2 * ops.weight_bytes, activation_bytes=4 * 512)
    target = open_target(name)
    without, with_, double = (price(work, phase, target) for work in ([MATRIX], [MATRIX, ops], [MATRIX, twice]))
    steps = [b.latency_s - a.latency_s for a, b in ((without, with_), (with_, double))]
    assert 0 < steps[0] < 1.01 * steps[1]
    if phase.tokens == 1:
        assert steps[1] == pytest.approx(steps[0], rel=0.01)
    # Without what leaks meanwhile: that goes with time, of which the slower part may hide some.
    work = [r.energy_j - sum(c.energy_j for c in r.components if c.name == "leakage") for r in (without, with_, double)]
    energies = [work[1] - work[0], work[2] - work[1]]
    assert energies[0] > 0 and energies[1] == pytest.approx(energies[0], rel=0.2)  # activations stay the same
    assert any("outliers, 0.02 MB with their places" in note for note in with_.notes)
    assert not any("outliers" in note for note in without.notes)


@pytest.mark.parametrize("name", ["rap", "rap-baseline", "qrazor-pim", "digital-sram-pim"])
def test_outliers_beyond_the_sram_come_from_dram(name):
    target = open_target(name).varied({"cache_capacity": OUTLIERS.weight_bytes / 4})
    report = price([MATRIX, OUTLIERS], Phase.of("decode", 20), target)
    energy = {c.name: c.energy_j for c in report.components}
    assert energy["DRAM"] == pytest.approx(0.75 * OUTLIERS.weight_bytes * target["dram_energy"])
    assert any("25 % lie in SRAM" in note for note in report.notes)


def test_outliers_lie_in_attentionlegos_macros():
    phase, target = Phase.of("decode", 20), open_target("attentionlego")
    many = replace(OUTLIERS, weight_bytes=128 * 128 * 10)
    without, with_ = (price(work, phase, target) for work in ([MATRIX], [MATRIX, many]))
    assert with_.area_mm2 - without.area_mm2 == pytest.approx(10 * target["macro_area"])
    assert with_.load_s - without.load_s == pytest.approx(many.weight_bytes * 8 / 32 / target["clock"])


def test_targets_without_a_rule_are_left_out_where_that_is_asked_for(tmp_path):
    tiny_model("olmoe", tmp_path / "source")
    (tmp_path / "model").mkdir()
    write_model_folder(FloatCheckpoint(tmp_path / "source"), tmp_path / "model")
    found = [report.target for report in estimate(tmp_path / "model", target_names(), "decode", 16, able_only=True)]
    assert found == [name for name in target_names() if open_target(name).kind in ("cpu", "stream")]
    with pytest.raises(InputError, match="no rule for a mixture of experts"):
        estimate(tmp_path / "model", target_names(), "decode", 16)
