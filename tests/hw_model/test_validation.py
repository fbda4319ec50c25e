"""The tables of docs/validation.md: what is in them, what they are computed with, and that the docs have them."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.artefacts.reader import read_graph
from export.model_folder import write_model_folder
from hw_model.estimate import price
from hw_model.graph_work.workload import Phase, operations
from hw_model.validation import boards, systems
from hw_model.validation.models import SHAPES, Shape
from hw_model.validation.report import headline, markdown, rows
from hw_model.validation.row import HELD_OUT, ORIGINS, Row
from targets import load_target

ROWS = rows()
FIGURES = {
    "llama": Shape(2, 32, 4, 2, 8, 48, 96, tied=False),
    "qwen3": Shape(2, 32, 4, 2, 16, 48, 96, norm_heads=True),
    "olmoe": Shape(2, 32, 4, 2, 8, 48, 96, experts=5, picked=2, norm_heads=True, tied=False),
    "lfm2": Shape(3, 32, 4, 2, 8, 32, 96, convolutions=2),
    "bert": Shape(2, 32, 4, 4, 8, 48, 96, encoder=True),
}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.chip} {row.quantity}".replace(" ", "-"))
def test_a_row_is_within_its_aim_or_says_why_not(row):
    assert row.origin in ORIGINS
    if row.modelled is None:
        assert row.why
    else:
        assert row.modelled > 0 and row.misses == bool(row.why), f"{row.modelled} {row.unit}, published {row.published}"


def test_the_table_in_the_docs_is_the_one_the_model_prints():
    assert markdown() in (Path(__file__).parents[2] / "docs" / "validation.md").read_text()


def test_the_readme_says_how_far_off_held_out_figures_are():
    cells = next(line for line in headline(ROWS).splitlines() if line.startswith("| held out")).split("|")
    count, median, ninetieth, worst = (cells[i].strip() for i in (2, 4, 5, 6))
    text = " ".join((Path(__file__).parents[2] / "README.md").read_text().split())
    assert f"Of {count} figures of published silicon, boards and systems" in text
    assert f"the median error is {median}, the 90th percentile {ninetieth}, the worst {worst} " in text


def test_a_kernels_rate_predicts_another_model():
    """Prompts of LFM2-700M by the rates that LFM2-350M gave, of two formats, repacked and as stored."""
    found = [row for row in ROWS if "LFM2-700M" in row.chip and row.quantity == "prefill"]
    assert len(found) == 4 and all(row.origin == HELD_OUT and abs(row.error) < 0.07 for row in found)


def test_enough_was_held_out():
    compared = [row for row in ROWS if row.origin == HELD_OUT and row.error is not None]
    assert len(compared) >= 10 and sum(row.system for row in compared) >= 4
    for name in ("TranCIM", "RCW-CIM, Llama-2-7B in INT4 decode", "RCW-CIM, Llama-2-7B in INT4 prefill"):
        assert all(abs(row.error) < 0.25 for row in compared if f"{row.chip} {row.quantity}".startswith(name))


def test_the_headline_counts_what_is_in_the_table():
    errors = (0.1, -0.2, 0.3, -0.4)
    found = [Row("", "", "", 1, 1 + e, o, 0.25, system=e > 0) for o in ORIGINS for e in errors]
    assert "| held out | 4 | 2 | 25 % | 37 % | 40 % | 2 |" in headline(found)


def test_boards_are_what_the_target_says():
    """A row is the price of its target: twice the bandwidth makes decode that waits for it twice as fast."""
    target, shape, phase = load_target("rpi5"), SHAPES["Qwen3-4B"], Phase.of("decode", 128)
    row = next(row for row in boards.rows() if "2026, Qwen3-4B" in row.chip and row.quantity == "decode")
    assert row.modelled == pytest.approx(price(shape.work(phase, 3.87), phase, target).tokens_per_s)
    faster = target.varied({"memory_bandwidth": 2 * target["memory_bandwidth"]})
    assert price(shape.work(phase, 3.87), phase, faster).tokens_per_s == pytest.approx(2 * row.modelled, rel=0.02)


def test_what_is_on_the_chip_is_all_but_its_memory():
    phase = Phase("prefill", 8, 0)
    report = price(SHAPES["BERT-base"].work(phase, 8), phase, load_target("digital-sram-pim"))
    outside = sum(c.energy_j + c.leakage_w * report.latency_s for c in report.components if c.name == "DRAM")
    assert systems.on_chip(report) == pytest.approx(report.energy_j - outside)


@pytest.mark.parametrize("family", FIGURES)
@pytest.mark.parametrize("phase", [Phase.of("prefill", 5), Phase.of("decode", 20)], ids=lambda phase: phase.name)
def test_a_shape_has_the_work_of_its_graph(family, phase, tmp_path):
    """Products, cache and stored bytes to the byte where weights are float32, other work within a tenth."""
    from tests.export.graph.families import FloatCheckpoint, tiny_model

    shape = FIGURES[family]
    if shape.encoder and phase.name == "decode":
        pytest.skip("an encoder has no cache")
    tiny_model(family, tmp_path / "source")
    (tmp_path / "model").mkdir()
    write_model_folder(FloatCheckpoint(tmp_path / "source"), tmp_path / "model")
    graph = operations(read_graph(tmp_path / "model"), phase)
    ours = shape.work(phase, 32, last_only=False)
    kinds = ("linear", "experts", "attention", "convolution")
    for field in ("macs", "cache_read_bytes", "cache_write_bytes"):
        for kind in kinds:
            assert _sum(ours, field, kind) == _sum(graph, field, kind), (field, kind)
    for kind in ("linear", "experts"):
        if not shape.experts:  # whose router is kept in half the bits
            assert _sum(ours, "weight_bytes", kind) == _sum(graph, "weight_bytes", kind)
    assert sum(op.vector_ops for op in ours) == pytest.approx(sum(op.vector_ops for op in graph), rel=0.3)


def _sum(work, field, kind):
    return sum(getattr(op, field) for op in work if op.kind == kind)
