"""Several sequences together: the work is theirs, weights are read once, and the knee is the roofline's."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.artefacts.graph import Graph
from export.contract.errors import InputError
from hw_model.estimate import open_target, price
from hw_model.generation import _generation
from hw_model.graph_work.workload import Operation, Phase, operations
from hw_model.sizing.batch import counts, curve
from targets import target_names
from tests.hw_model.test_books import seven_billion
from tests.hw_model.test_machines import llama


def totals(graph: Graph, phase: Phase) -> dict[str, float]:
    work = operations(graph, phase)
    names = ("macs", "vector_ops", "cache_read_bytes", "cache_write_bytes", "quantized", "stored")
    found = {name: float(sum(getattr(op, name) for op in work)) for name in names}
    found["weights"] = float(sum(op.weight_bytes for op in work if op.kind in ("linear", "sparse")))
    found["experts"] = float(sum(op.weight_bytes for op in work if op.kind == "experts"))
    found["pairs"] = float(sum(op.pairs for op in work if op.kind == "attention"))
    found["keys"] = float(sum(op.keys(phase).sum() for op in work if op.kind == "attention"))
    return found


@pytest.mark.parametrize("name, context", [("decode", 20), ("prefill", 5)])
def test_the_work_of_several_is_that_of_each(graph, name, context):
    """Products, cache and pairs times their number; weights once, of experts as many as have a pick."""
    if name == "decode" and not any(info.name.startswith("past_") for info in graph.inputs):
        pytest.skip("an encoder has no decode")
    one, three = (totals(graph, Phase.of(name, context, n)) for n in (1, 3))
    assert three["macs"] == 3 * one["macs"] and three["pairs"] == 3 * one["pairs"] and three["keys"] == three["pairs"]
    assert three["cache_read_bytes"] == 3 * one["cache_read_bytes"]
    assert three["cache_write_bytes"] == 3 * one["cache_write_bytes"] and three["quantized"] == 3 * one["quantized"]
    assert three["weights"] == one["weights"] and three["stored"] == one["stored"]
    assert one["experts"] <= three["experts"] <= 3 * one["experts"]
    assert 2.5 * one["vector_ops"] <= three["vector_ops"] <= 3 * one["vector_ops"]  # masks and positions are shared


@pytest.mark.parametrize("name", target_names())
@settings(max_examples=8, deadline=None)
@given(sequences=st.integers(2, 40), context=st.sampled_from([1, 33]))
def test_several_cost_no_more_than_each_alone_and_no_less_than_one(name, sequences, context):
    target = open_target(name)
    one, many = Phase.of("decode", context), Phase.of("decode", context, sequences)
    alone = price(llama(2, 256, 704, 1, context), one, target, ranged=False)
    together = price(batched(2, 256, 704, many), many, target, ranged=False)
    assert alone.latency_s * (1 - 1e-9) <= together.latency_s <= alone.latency_s * sequences * (1 + 1e-9)
    assert together.tokens == sequences and together.tokens_per_s >= alone.tokens_per_s * (1 - 1e-9)
    if target.kind != "attentionlego":  # its macros grow with the caches that lie in them
        assert together.energy_j <= alone.energy_j * sequences * (1 + 1e-9)


def batched(layers: int, hidden: int, feed_forward: int, phase: Phase) -> list[Operation]:
    found = []
    for op in llama(layers, hidden, feed_forward, phase.tokens, phase.total):
        more = {name: getattr(op, name) * phase.sequences for name in ("macs", "vector_ops", "activation_bytes")}
        cache = {name: getattr(op, name) * phase.sequences for name in ("cache_read_bytes", "cache_write_bytes")}
        found.append(replace(op, **more, **cache))
    return found


@pytest.mark.parametrize("name", ["rpi5", "laptop-x86", "laptop-apple", "rpi4", "tender"])
def test_the_knee_is_the_rooflines(name):
    """Within 5 % on the machines that a roofline describes."""

    def work(sequences: int):
        context = 1024 if name == "tender" else 16  # no cache fits its buffer; no cache to speak of
        phase = Phase.of("decode", context, sequences)
        return batched(8, 2048, 5632, phase), phase

    found = curve(work, open_target(name), (1, 64))
    assert found.knee.machine == pytest.approx(found.knee.roofline, rel=0.05)
    assert list(found.reports) == [1, 2, 4, 8, 16, 32, 64]
    rates = [report.tokens_per_s for report in found.reports.values()]
    assert rates == sorted(rates)


def test_counts_double_up_to_the_last():
    assert counts(1, 64) == (1, 2, 4, 8, 16, 32, 64) and counts(3, 20) == (3, 6, 12, 20)


@pytest.mark.parametrize("sequences", [0, -1, 2**16 + 1])
def test_a_number_of_sequences_is_checked(sequences):
    with pytest.raises(InputError, match="--batch must be"):
        Phase.of("decode", 5, sequences)


PUBLISHED = [  # TensorRT-LLM 0.5.0, docs/source/performance.md: LLaMA-7B, float16, one A100; tokens/s of all answers
    (64, 128, 128, 3486), (32, 128, 2048, 1459), (32, 2048, 128, 529), (16, 2048, 2048, 592),
]  # fmt: skip


@pytest.mark.parametrize("sequences, prompt, answer, published", PUBLISHED)
def test_published_batched_rows(sequences, prompt, answer, published):
    """The first row fitted the bandwidth, the first-token row of the same page the arithmetic; three are held out."""
    target = open_target("a100")
    found = _generation(float16_7b, [(0, float16_7b)], target, prompt, answer, "rtl", "latency", sequences)
    assert found.tokens_per_s == pytest.approx(published, rel=0.15)
    first = price(float16_7b(Phase.of("prefill", 2048)), Phase.of("prefill", 2048), target, ranged=False)
    assert first.latency_s == pytest.approx(0.133, rel=0.02)


def float16_7b(phase: Phase) -> list[Operation]:
    """LLaMA-7B with weights and cache in float16, and the head for the last token only."""
    found = []
    for op in seven_billion(Phase.of(phase.name, phase.total), bits=16.0):
        n = phase.sequences
        if op.kind == "attention":
            op = replace(op, cache_read_bytes=8 * 4096 * phase.total)
        found.append(
            replace(
                op,
                macs=n * op.macs,
                vector_ops=0,
                cache_read_bytes=n * op.cache_read_bytes,
                cache_write_bytes=n * op.cache_write_bytes,
            )
        )
    head = 4096 * 32000
    return [
        *found,
        Operation("head", "linear", macs=phase.sequences * head, weight_bytes=2 * head, rows=32000, columns=4096),
    ]
