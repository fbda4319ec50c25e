"""Machines whose work follows the codes: Tender's groups from the file, bit planes by p times q."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from export.artefacts.graph import Graph
from export.artefacts.reader import read_graph
from export.contract.errors import InputError
from export.contract.operators.tender import TENDER_QUANTIZE
from hw_model.estimate import open_target, price
from hw_model.graph_work.nodes import uniform
from hw_model.graph_work.workload import Phase, operations
from hw_model.machines.result import CostReport
from runtime_py.reference.session import Session
from tests.conftest import _checkpoint, _package
from tests.export.graph.families import random_text, tiny_model
from tests.toolchain.quantize.test_qrazor import _folder
from toolchain.evaluate.emulate import EmulatedScorer, emulated_target

PREFILL = Phase.of("prefill", 32)
IDS = np.random.default_rng(0).integers(3, 90, 24)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    work = tmp_path_factory.mktemp("tiny")
    tiny_model("llama", work / "source")
    return work / "source"


def grouped(source: Path, out: Path, bits: int = 4, width: int = 4) -> Path:
    out.mkdir()
    razor = {"activation_bits": width, "activation_groups": 14}
    return _folder(source, out, method="tender", bits=bits, sequences=4, sequence_length=32, razor=razor)


@pytest.fixture(scope="module")
def tender(source, tmp_path_factory) -> Path:
    return grouped(source, tmp_path_factory.mktemp("groups") / "w4a4")


def spent(graph: Graph, name: str, part: str = "MAC array", **changes: float) -> float:
    """J of one part in a prefill."""
    report: CostReport = price(operations(graph, PREFILL), PREFILL, open_target(name).varied(changes), ranged=False)
    return next(found.energy_j for found in report.components if found.name == part)


def linear(graph: Graph):  # type: ignore[no-untyped-def]
    return [op for op in operations(graph, PREFILL) if op.kind == "linear"]


def test_groups_middles_and_shifts_are_the_files(tender):
    graph = read_graph(tender)
    makers = [node for node in graph.nodes if node.op_type == TENDER_QUANTIZE]
    most = max(int(graph.weights[node.inputs[3]].max()) for node in makers)
    own = [op for op in linear(graph) if op.code_bits]
    assert {op.code_bits for op in own} == {(4, 4)} and max(op.shifts for op in own) == most > 0
    report = price(operations(graph, PREFILL), PREFILL, open_target("tender"), ranged=False)
    assert f"up to {most} shifts" in " ".join(report.notes)
    # A shift more in every sum takes a cycle more of each of its accumulators.
    weights = {**graph.weights, **{n.inputs[3]: graph.weights[n.inputs[3]] + np.uint8(1) for n in makers}}
    more = spent(replace(graph, weights=weights), "tender") - spent(graph, "tender")
    outputs = sum(op.macs / op.columns for op in own)
    assert more == pytest.approx(outputs * open_target("tender")["mac_energy"], rel=1e-9)
    quantized = [op for op in operations(graph, PREFILL) if op.kind == "quantization"]
    assert len(quantized) == len(makers) and all(op.vector_ops and op.weight_bytes for op in quantized)


def test_eight_bits_are_four_products_of_four(source, tender, tmp_path):
    narrow, wide = read_graph(tender), read_graph(grouped(source, tmp_path / "w8a8", bits=8, width=8))
    assert {op.code_bits for op in linear(wide) if op.code_bits} == {(8, 8)}
    for op, other in zip(linear(narrow), linear(wide)):
        assert other.code_bits == (op.code_bits and (8, 8))
    share = spent(wide, "tender") / spent(narrow, "tender")
    assert 2 < share < 4.2  # the head and scores of both are alike


def test_the_tender_target_emulates_the_files_own_integers(tender):
    """Products are those of the graph; only attention and head are computed by the target."""
    session = Session(tender)
    plain = session.forward(session.new_state(), IDS)
    found = EmulatedScorer(tender, emulated_target("tender", ("activation_bits=16", "weight_bits=8"))).logits(IDS)
    assert ((found - plain) ** 2).mean() < 0.05 * plain.var()
    with pytest.raises(InputError, match="for accumulators that shift"):
        EmulatedScorer(tender, emulated_target("rap")).logits(IDS)
    with pytest.raises(InputError, match="for accumulators that shift"):
        EmulatedScorer(tender, emulated_target("tender", ("activation_groups=1",))).logits(IDS)


def test_planes_cost_p_times_q(source, tmp_path):
    """Uniform codes have as many planes as bits; a codebook of other levels those of its entries, eight."""
    text = random_text(tmp_path / "text.txt")
    shares = {}
    for bits in (2, 4):
        work = tmp_path / str(bits)
        checkpoint = _checkpoint(source, str(text), None, work / "q", method="rtn", bits=bits, sequences=2)
        graph = read_graph(_package(checkpoint, work / "model"))
        planes = {op.plane_bits for op in linear(graph)}
        assert planes == {bits, 8}  # and the head's
        inside = [op for op in linear(graph) if op.plane_bits == bits]
        rest = sum(op.macs for op in linear(graph) if op.plane_bits == 8)
        for inputs in (2, 8):
            attention = sum(op.macs for op in operations(graph, PREFILL) if op.kind == "attention")
            work_ = inputs * (bits * sum(op.macs for op in inside) + 8 * rest + 8 * attention)
            found = spent(graph, "bitplane", activation_bits=inputs)
            assert found == pytest.approx(work_ * open_target("bitplane")["mac_energy"], rel=1e-9)
            shares[bits, inputs] = found
    assert shares[2, 2] * 4 == pytest.approx(shares[2, 8]) and shares[2, 8] < shares[4, 8]
    report = price(operations(graph, PREFILL), PREFILL, open_target("bitplane"), ranged=False)
    assert "bit by bit: weights of 4, 8 planes" in " ".join(report.notes)


def test_kept_weights_alone_take_cycles_where_the_machine_skips_zeros(source, tmp_path):
    text, spend, size = random_text(tmp_path / "text.txt"), {}, {}
    for name, options in (("sparse", {"bits": 4, "sparsity": "1:4"}), ("dense", {"bits": 4})):
        checkpoint = _checkpoint(source, str(text), None, tmp_path / name / "q", sequences=2, **options)
        graph = read_graph(_package(checkpoint, tmp_path / name / "model"))
        inside = [op for op in linear(graph) if op.density < 1]
        assert {op.density for op in inside} == ({0.25} if name == "sparse" else set())
        spend[name] = {target: spent(graph, target) for target in ("sparse-mac", "tender", "hetero-albert")}
        size[name] = sum(op.weight_bytes for op in linear(graph))
        if name == "sparse":
            zeros = 0.75 * sum(op.macs for op in inside)
            saved = zeros * open_target("sparse-mac")["mac_energy"]
            more = spent(graph, "sparse-mac", skips_zeros=0) - spend[name]["sparse-mac"]
            assert more == pytest.approx(saved, rel=1e-9)
    assert spend["sparse"]["sparse-mac"] < spend["dense"]["sparse-mac"] and size["sparse"] < size["dense"]
    assert spend["sparse"]["tender"] == pytest.approx(spend["dense"]["tender"])  # which multiplies with zeros, too
    # A backbone of bit masks gates what the file says are zeros, and assumes half of a dense file's.
    assert spend["sparse"]["hetero-albert"] < spend["dense"]["hetero-albert"]


def test_which_codebooks_are_uniform():
    assert uniform(np.array([[[-2, -1, 0, 1]]], np.int8)) and uniform(np.array([[[-7, 0, 7, 7]]], np.int8))
    assert uniform(np.array([[[5, 2]]], np.int8))
    assert uniform(np.array([[[-2, -1, 0, 1, 2, 2, 2, 2]]], np.int8))  # bit balance
    for book in ([[[0, 1, 3, 4]]], [[[0, 0, 0, 0]]], [[[0, 1, 2, 3]], [[0, 1, 2, 9]]]):
        assert not uniform(np.array(book, np.int8))
