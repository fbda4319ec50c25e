"""Machine work is graph work: the products, stored bytes and moved bytes that each machine prices are the workload's.

What a machine prices is read off its report: an energy divided by the constant it is counted with is a number of
products or bytes. Families, phases, windows, encoders, shared blocks, experts, convolutions and weight formats.
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from export.artefacts.graph import Graph
from export.contract.formats import FORMATS
from export.files.access import read_json
from export.graph.archs import model_spec
from hw_model.estimate import has_rules, open_target, price
from hw_model.graph_work.workload import Operation, Phase, operations
from hw_model.machines.array import build
from hw_model.machines.result import CostReport
from targets import Target, target_names
from tests.hw_model.conftest import KEPT, SCHEMES

PHASES = [Phase.of("prefill", 5), Phase.of("prefill", 23), Phase.of("decode", 3), Phase.of("decode", 40)]
BY_KIND = {kind: [n for n in target_names() if open_target(n).kind == kind] for kind in ("cpu", "pim", "stream")}


@pytest.fixture(params=PHASES, ids=lambda phase: f"{phase.name}-{phase.total}")
def work(request, graph: Graph) -> tuple[list[Operation], Phase]:
    """The graph's work in one phase."""
    if request.param.name == "decode" and not any(info.name.startswith("past_") for info in graph.inputs):
        pytest.skip("an encoder has no decode")
    return operations(graph, request.param), request.param


def total(work: list[Operation], field: str, *kinds: str) -> float:
    return sum(getattr(op, field) for op in work if not kinds or op.kind in kinds)


def bytes_of(work: list[Operation], *kinds: str, without: tuple[str, ...] = ()) -> float:
    """Stored bytes that operations of these kinds read."""
    return sum(op.weight_bytes for op in work if (not kinds or op.kind in kinds) and op.kind not in without)


def cache(work: list[Operation], bits: float) -> float:
    """Bytes of keys, values and states that are read and written, at a machine's width."""
    return (total(work, "cache_values") + total(work, "new_values")) * bits / 8


def priced(
    work: list[Operation], phase: Phase, target: Target, **changed: float
) -> tuple[CostReport, dict[str, float]]:
    """The report and its energies by component, of the target with some constants changed."""
    report = price(work, phase, target.varied(changed), objective="energy")
    return report, {part.name: part.energy_j for part in report.components}


def test_the_files_bytes_are_accounted_for_once(work, graph):
    """Whatever layers share them; and a matrix multiplies as many vectors as its products say."""
    stored = {name: array.nbytes for name, array in graph.weights.items() if array.dtype != np.int64}
    assert total(work[0], "stored") == sum(stored.values())
    assert all(op.stored <= op.weight_bytes or op.kind in ("embedding", "experts") for op in work[0] if op.weight_bytes)
    linear = [op for op in work[0] if op.kind == "linear"]
    assert all(op.macs == op.vectors * op.rows * op.columns and op.vectors <= work[1].tokens for op in linear)
    assert sum(1 / op.uses for op in linear) == pytest.approx(sum(not op.again for op in linear))


def test_every_weight_format_is_among_the_schemes():
    """By name or as what --method keep makes; a new format is to be added to tests/hw_model/conftest.py."""
    chosen = {scheme.get("format", "razored" if "razor" in scheme else "codebook") for scheme in SCHEMES.values()}
    assert chosen | {"groups"} == set(FORMATS) and KEPT


def test_pairs_are_those_of_the_mask(work, graph):
    """By the family's own description: windows of layers, encoders that look both ways."""
    spec, (found, phase) = model_spec(read_json(graph.folder / "config.json")), work
    layers = [i for i in range(spec.layers) if spec.names_of_layer(i).attends]
    attention = [op for op in found if op.kind == "attention"]
    assert len(attention) == len(layers)
    for layer, op in zip(layers, attention):
        window, keys = spec.window(layer) or math.inf, np.arange(phase.total)
        place = phase.past + np.arange(phase.tokens)[:, None]
        seen = np.abs(place - keys) < window
        if spec.causal or spec.looks_back_only:
            seen &= keys <= place
        assert op.keys(phase).tolist() == seen.sum(axis=1).tolist()
        sizes = spec.heads_of(layer)
        assert op.pairs == seen.sum() and op.macs == 2 * op.pairs * sizes.heads * sizes.head_dim
        assert op.causal == (spec.causal or spec.looks_back_only)


@pytest.mark.parametrize("name", BY_KIND["cpu"])
def test_cpu(name, work):
    found, phase = work
    cached = sum((op.cache_values + op.new_values) * min(op.cache_bytes_each, 2.0) for op in found)
    report = price(found, phase, open_target(name))
    assert report.memory_bytes == pytest.approx(total(found, "weight_bytes") + cached)
    fast = open_target(name).varied({"memory_bandwidth": 1e30})
    report = price(found, phase, fast)
    assert report.latency_s * fast["compute_rate"] == pytest.approx(
        2 * total(found, "macs") + total(found, "vector_ops")
    )


def cycles(op, target):
    """Of one element: a product each; shifts between channel groups; of bit planes every pair.

    Codes of channel groups have the bits and shifts of the file: wider ones than the element's take several products.
    A machine that skips zeros takes nothing for weights that a format leaves out.
    """
    if target["planes"] and op.code_bits:
        return op.macs * op.code_bits[0] * op.code_bits[1]
    if target["planes"]:
        inputs = op.input_bits or target["activation_bits"]
        return op.macs * inputs * (op.plane_bits if op.kind == "linear" else target["cache_bits"])
    if target["activation_groups"] <= 1 or op.kind != "linear" or op.changes:
        return op.macs * (op.density if target["skips_zeros"] else 1)
    shifts, products = target["activation_groups"] - 1, 1
    if op.code_bits:
        own = target["activation_bits"], target["weight_bits"] or 8
        shifts, products = op.shifts, math.prod(-(-theirs // ours) for theirs, ours in zip(op.code_bits, own))
    return products * (op.macs + shifts * op.vectors * op.rows)


@pytest.mark.parametrize("name", BY_KIND["stream"])
def test_stream(name, work):
    found, phase = work
    target = open_target(name).varied({"density": 1, "weight_bits": 0})
    none = {"weight_capacity": 0, "buffer_capacity": 0}
    _, energy = priced(found, phase, target, **none)
    assert energy["MAC array"] / target["mac_energy"] == pytest.approx(sum(cycles(op, target) for op in found))
    assert energy["vector unit"] / target["vector_energy"] == pytest.approx(total(found, "vector_ops"))
    moved = total(found, "weight_bytes") + cache(found, target["cache_bits"])
    assert energy["DRAM"] / target["dram_energy"] == pytest.approx(moved)
    matrices = sum(op.weight_bytes for op in found if op.kind == "linear" and not op.again)
    _, energy = priced(found, phase, target, weight_capacity=matrices / 2, buffer_capacity=1e12)
    inside = energy["weight memory"] / target["weight_energy"]
    assert inside == pytest.approx(bytes_of(found, "linear") / 2)
    assert energy["DRAM"] / target["dram_energy"] == pytest.approx(total(found, "weight_bytes") - inside)


@pytest.mark.parametrize("name", BY_KIND["pim"])
def test_pim(name, work):
    found, phase = work
    target, array = open_target(name).varied({"transfer_bits": 0}), build(open_target(name))
    if not has_rules(target, found):
        pytest.skip("no rule for experts")
    kept = total(found, "stored") - total(found, "stored", "linear", "embedding")
    report, energy = priced(found, phase, target, arrays=0, cache_capacity=kept, dram_energy=1)
    products = sum(energy[part] for part in array.energy) / sum(array.energy_of(1).values())
    assert products == pytest.approx(total(found, "macs", "linear"))
    assert energy["attention engine"] / target["attention_energy"] == pytest.approx(total(found, "macs", "attention"))
    softmax = sum(op.pairs * op.heads for op in found if op.kind == "attention")
    assert energy["softmax"] / target["softmax_energy"] == pytest.approx(softmax)
    others = sum(op.other_ops for op in found if op.kind not in ("linear", "attention"))
    assert energy["vector unit"] / target["vector_energy"] == pytest.approx(others)
    outputs = sum(op.vectors * op.rows for op in found if op.kind == "linear" and not op.coded)
    codes = energy["requantization"] / target["requantize_energy"]
    assert codes == pytest.approx(outputs + total(found, "quantized"))
    assert report.mapping["arrays_needed"] == sum(
        math.ceil(op.rows / array.outputs) * math.ceil(op.columns / array.rows)
        for op in found if op.kind == "linear" and not op.again
    )  # fmt: skip
    outside = cache(found, target["cache_bits"]) + bytes_of(found, "embedding")
    assert energy["DRAM"] == pytest.approx(outside)  # a byte costs 1 J: none is read twice
    report, energy = priced(found, phase, target, arrays=1, cache_capacity=1e12)
    if report.mapping["resident_share"] == 0:
        moved = bytes_of(found, "embedding", "linear")
        assert energy["DRAM"] / target["dram_energy"] == pytest.approx(moved)


@pytest.mark.parametrize("profile", ["rtl", "ideal"])
def test_attentionlego(profile, work):
    found, phase = work
    free = {"key_write_cycles": 0, "softmax_lanes": 1e30, "vector_lanes": 1e30, "projection_cycles": 0}
    target = open_target("attentionlego")
    if not has_rules(target, found):
        pytest.skip("no rule for experts")
    report = price(found, phase, target, profile)
    energy = {part.name: part for part in report.components}
    assert energy["macros"].energy_j / target["mac_energy"] == pytest.approx(total(found, "macs"))
    side, kept = 128 * 128, total(found, "stored") - total(found, "stored", "linear", "embedding")
    held = Counter({op.is_cached: 0 for op in found})
    for op in found:
        if op.kind == "attention":
            size = op.held_values(phase)
            held[op.is_cached] = held[True] + size if op.is_cached else max(held[False], size)
    macros = sum(
        math.ceil(op.rows / 128) * math.ceil(op.columns / 128) for op in found if op.kind == "linear" and not op.again
    ) + math.ceil(sum(held.values()) / side) + math.ceil(kept / side)  # fmt: skip
    assert energy["macros"].area_mm2 / target["macro_area"] == pytest.approx(macros)
    alone = [op for op in found if op.kind == "attention"]
    if alone and profile == "rtl":
        cycles = price(alone, phase, target.varied({**free, "score_cycles_per_key": 1})).latency_s * target["clock"]
        softmax = 2 * phase.tokens * len(alone)  # one beat in, one out, however wide
        assert cycles == pytest.approx(sum(2 * (op.pairs + phase.tokens) for op in alone) + softmax)
    matrices = [op for op in found if op.kind == "linear"]
    cycles = price(matrices, phase, target.varied({"projection_cycles": 1})).latency_s * target["clock"]
    assert cycles == pytest.approx(sum(op.vectors for op in matrices))
