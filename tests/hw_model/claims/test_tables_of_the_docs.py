"""The tables of README and docs/cost.md are what the model says: 7B on every target, RAP's mechanisms, a small model.

Figures are compared as they are printed, so a constant that changes shows where it is quoted.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from export.artefacts.graph import Graph
from hw_model.claims.mechanisms import compare
from hw_model.estimate import open_target, price
from hw_model.graph_work.workload import Phase, operations
from hw_model.machines.parts import LEAKAGE
from hw_model.sizing.silicon import at_the_knee
from targets import target_names
from tests.hw_model.test_books import shape
from toolchain.costing.tables import overview
from toolchain.pipeline.hollow import hollow_graph
from toolchain.pipeline.published_shapes import chosen_shape
from toolchain.settings.quantize import QuantizeSettings
from toolchain.source.config import resolved_config
from toolchain.system.units import engineering

ROOT = Path(__file__).resolve().parents[3]
README, COST = (" ".join((ROOT / name).read_text().split()) for name in ("README.md", "docs/cost.md"))
DECODE = Phase.of("decode", 1024)


@pytest.fixture(scope="module")
def seven_billion(tmp_path_factory) -> Graph:
    """What `export --random llama-2-7b --bits 3` writes, without its codes."""
    folder = tmp_path_factory.mktemp("hollow")
    config = resolved_config(chosen_shape("llama-2-7b"), folder / "config.json")
    return hollow_graph(config, QuantizeSettings(bits=3, rows_per_codebook=4), folder)  # as many as random codes share


@pytest.mark.parametrize("name", target_names())
def test_seven_billion_on_every_target(name, seven_billion):
    """Latency, energy, both ranges, area and what binds, at the knee but for boards."""
    work, target = operations(seven_billion, DECODE), open_target(name)
    if target.kind != "cpu":
        target = at_the_knee(work, DECODE, target)
    _, (row,) = overview([price(work, DECODE, target)])
    sized, cells = row[0].split(" "), " ".join(row[1:-1])
    assert f"{sized[0]} {cells}" in README or f"{' '.join(sized[:2])} {cells}" in README, row
    assert row[-1].split(" ")[0] in README


def test_what_seven_billion_deserve(seven_billion):
    work, found = operations(seven_billion, DECODE), {}
    for arrays in (2, 64, 2048):
        for bandwidth in (12.8e9, 51.2e9):
            target = open_target("rap").varied({"arrays": arrays, "dram_bandwidth": bandwidth})
            found[arrays, bandwidth] = price(work, DECODE, target, ranged=False)
            r = found[arrays, bandwidth]
            figures = f"{engineering(r.latency_s, 's')} {engineering(r.energy_j, 'J')} {r.area_mm2:,.1f}"
            printed = f"{arrays} {bandwidth:g} {figures}"
            assert (printed in README) == (bandwidth == 51.2e9 or arrays == 2), printed  # others are beaten
    small, large = found[2, 12.8e9], found[2048, 12.8e9]
    assert (engineering(small.latency_s, "s"), engineering(small.energy_j, "J")) == ("221 ms", "214 mJ")
    leaks = next(part.energy_j for part in large.components if part.name == LEAKAGE)
    assert f"RAP takes 220 ms and 1.65 J a token, of which {engineering(leaks, 'J')} leak, on 738 mm2" in COST
    assert (engineering(large.energy_j, "J"), f"{large.area_mm2:.0f}") == ("1.65 J", "738")


def test_a_model_that_fits(tmp_path):
    """scribe-6M on 352 arrays."""
    work = operations(shape("scribe-6m", tmp_path / "m", bits=3), DECODE)
    rows = re.findall(
        r"\| ([a-z-]+)(, 8 columns a converter)? \| ([\d.]+ us) \| ([\d.]+ uJ) \| (\d+) mm2 \| ([\d.]+ uJ) \|", COST
    )
    assert len(rows) == 7
    for name, shared, *printed in rows:
        changed = {"arrays": 352.0, **({"columns_per_adc": 8.0} if shared else {})}
        r = price(work, DECODE, open_target(name).varied(changed), ranged=False)
        work_alone = sum(part.energy_j for part in r.components if part.name != LEAKAGE)
        figures = (1e6 * r.latency_s, 1e6 * r.energy_j, r.area_mm2, 1e6 * work_alone)
        for text, figure in zip(printed, figures):
            places = len(text.split(" ")[0].partition(".")[2])
            assert float(text.split(" ")[0]) == pytest.approx(figure, abs=0.51 * 10**-places), (name, text, figure)


def test_raps_claim_as_both_pages_have_it(tmp_path):
    phase = Phase.of("prefill", 128)
    work = operations(shape("bert-base", tmp_path / "m", bits=3), phase)
    rows = compare(work, phase, open_target("rap-baseline-shared"), open_target("rap-shared"))
    first = rows[0]
    for row in rows[1:5]:
        pairs = (
            (row.area_mm2, first.area_mm2), (row.energy_j, first.energy_j), (row.dynamic_j, first.dynamic_j),
            (row.latency_s, first.latency_s),
        )  # fmt: skip
        ratios = [f"{a / b:.2f}" for a, b in pairs]
        assert f"| {row.variant} | {' | '.join(ratios)} |" in README, (row.variant, ratios)
        line = re.search(rf"\| {row.variant} \|" + 4 * r"[^|]*\(([\d.]+)\) \|", COST)
        assert line and list(line.groups()) == ratios
