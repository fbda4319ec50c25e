"""The machines on real and constructed work: closed forms, conservation of bytes and energy, monotonicity."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.artefacts.reader import read_graph
from export.artefacts.widths import at_width, shape_at
from export.contract.errors import InputError
from hw_model.components.macro import Macro, energies
from hw_model.estimate import OBJECTIVES, estimate, open_target, price
from hw_model.generation import generation
from hw_model.graph_work.workload import Operation, Phase, operations
from hw_model.machines.array import build
from hw_model.sizing.sweep import Model, Start, sweep
from targets import target_names
from tests.runtime_py.tiny import write_tiny
from toolchain.settings.quantize import QuantizeSettings

DECODE = Phase.of("decode", 100)
NESTED = QuantizeSettings(bits=4, nested=2)


def linear(rows: int, columns: int, tokens: int = 1, bits: float = 3.0) -> Operation:
    size = round(rows * columns * bits / 8)
    moved = 4 * tokens * (rows + columns)
    return Operation(
        "w", "linear", macs=rows * columns * tokens, weight_bytes=size, activation_bytes=moved, rows=rows,
        columns=columns, weight_bits=bits,
    )  # fmt: skip


def llama(layers: int, hidden: int, feed_forward: int, tokens: int, keys: int) -> list[Operation]:
    """The work of a llama-like block, repeated."""
    block = [linear(hidden, hidden, tokens) for _ in range(4)] + [
        linear(feed_forward, hidden, tokens) for _ in range(2)
    ]
    heads = hidden // 128
    pairs = sum(keys - tokens + 1 + t for t in range(tokens))
    attention = Operation("a", "attention", macs=2 * pairs * hidden, vector_ops=6 * pairs * heads, heads=heads,
                          cache_read_bytes=8 * hidden * keys, kv_heads=heads, head_dim=128)  # fmt: skip
    norm = Operation("n", "normalization", vector_ops=4 * hidden * tokens, activation_bytes=8 * hidden * tokens)
    return [*block, linear(hidden, feed_forward, tokens), attention, norm, norm] * layers


def test_an_array_is_the_macro_it_is_made_of():
    target = open_target("digital-sram-pim")
    array = build(target)
    assert array.cycles == 8 and array.bytes == 128 * 128
    assert array.clock == pytest.approx(1e9 / 3.75708)  # slower than the 400 MHz that the rest may run at
    macro = Macro(False, 128, 128, input_toggles=target["input_toggles"], weight_ones=target["weight_ones"])
    assert sum(array.energy.values()) == pytest.approx(8e-15 * sum(energies(macro).values()))
    assert array.tiles(128, 128) == 1 and array.tiles(129, 128) == 2 and array.tiles(129, 129) == 4


def test_one_resident_matrix_by_hand():
    target = open_target("digital-sram-pim")
    array = build(target)
    report = price([linear(256, 128)], DECODE, target)
    network = (128 * 2 + 256) / target["network_bandwidth"]
    requantize = 256 / 128 / target["clock"]
    assert report.latency_s == pytest.approx(max(8 / array.clock, network) + requantize)
    energy = (
        2 * sum(array.energy.values()) + (128 * 2 + 256) * target["network_energy"] + 256 * target["requantize_energy"]
    )
    memory = target["leakage"] * (2048 * array.bytes + target["cache_capacity"])
    memory += target["dram_idle"] * target["dram_bandwidth"]
    no_logic = 2048 * array.areas["cells"] + target["cache_capacity"] * target["sram_area"]
    leak = memory + (report.area_mm2 - no_logic) * target["logic_leakage"]
    assert report.energy_j == pytest.approx(energy + leak * report.latency_s)
    assert report.mapping["resident_share"] == 1 and report.mapping["arrays_needed"] == 2


def test_a_half_filled_array_costs_its_time_but_half_its_energy():
    target = open_target("digital-sram-pim")
    full, half = (price([linear(n, 128)], DECODE, target) for n in (128, 64))
    parts = [{c.name: c.energy_j for c in r.components} for r in (full, half)]
    assert parts[1]["adder trees"] == pytest.approx(parts[0]["adder trees"] / 2)


@pytest.mark.parametrize("name", ["digital-sram-pim", "rap", "rap-baseline", "qrazor-pim"])
def test_what_does_not_fit_comes_from_dram(name):
    target = open_target(name).varied({"arrays": 64})
    work = llama(4, 1024, 2816, 1, 100)
    report = price(work, DECODE, target)
    stored = sum(op.rows * op.columns for op in work if op.kind == "linear")
    spilled = 1 - report.mapping["resident_share"]
    bits = target["transfer_bits"] or 3.0
    assert report.memory_bytes == pytest.approx(stored * spilled * bits / 8, rel=1e-6)
    assert report.latency_s >= report.memory_bytes / target["dram_bandwidth"]
    dram = next(c.energy_j for c in report.components if c.name == "DRAM")
    assert dram == pytest.approx(report.memory_bytes * target["dram_energy"])


def test_components_and_kinds_add_up():
    work = llama(3, 512, 1408, 16, 16)
    for name in target_names():
        for objective in OBJECTIVES:
            report = price(work, Phase.of("prefill", 16), open_target(name), objective=objective)
            assert sum(k.latency_s for k in report.by_kind) == pytest.approx(report.latency_s), name
            assert sum(k.energy_j for k in report.by_kind) == pytest.approx(report.energy_j), name
            assert sum(c.energy_j for c in report.components) == pytest.approx(report.energy_j), name
            assert report.latency_low_s <= report.latency_s <= report.latency_high_s, name


def test_the_objective_is_what_is_minimised():
    work, phase, target = llama(4, 512, 1408, 64, 64), Phase.of("prefill", 64), open_target("rap")
    found = {objective: price(work, phase, target, objective=objective) for objective in OBJECTIVES}
    assert found["latency"].latency_s == min(r.latency_s for r in found.values())
    assert found["energy"].energy_j == min(r.energy_j for r in found.values())
    assert found["edp"].energy_delay == min(r.energy_delay for r in found.values())


def test_a_pipelined_prompt_is_bound_by_its_slowest_part():
    phase, target = Phase.of("prefill", 256), open_target("digital-sram-pim")
    work = llama(2, 256, 704, 256, 256)
    report = price(work, phase, target)
    assert report.mapping["pipelined"]
    serial = sum(price([op], phase, target.varied({"arrays": 1})).latency_s for op in work)
    vector = sum(op.vector_ops for op in work if op.kind == "normalization") / target["vector_lanes"] / target["clock"]
    assert vector <= report.latency_s < serial


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["digital-sram-pim", "rap", "qrazor-pim", "tender", "hetero-albert"]),
    st.sampled_from(["dram_bandwidth", "clock", "vector_lanes"]),
    st.floats(1.1, 8),
    st.integers(1, 300),
)
def test_more_of_a_resource_is_never_slower(name, resource, factor, context):
    target, phase = open_target(name), Phase.of("decode", context)
    work = llama(2, 1024, 2816, 1, context)
    better = target.varied({resource: target[resource] * factor})
    assert price(work, phase, better).latency_s <= price(work, phase, target).latency_s * (1 + 1e-9)


def test_rap_against_its_baseline():
    """The same array: what low ENOB, shift-parse and the integer softmax save, under RAP's own 2**ENOB law."""
    work, phase = llama(4, 512, 1408, 1, 1024), Phase.of("decode", 1024)
    ours, theirs = (
        {c.name: c.energy_j for c in price(work, phase, open_target(name)).components}
        for name in ("rap", "rap-baseline")
    )
    assert theirs["ADC"] / ours["ADC"] == pytest.approx(16 / 4, rel=0.01)  # 2**4 an ADC, 4 conversions for 53 ones
    each = [open_target(name)["requantize_energy"] for name in ("rap-baseline", "rap")]
    assert each[0] > 20 * each[1]
    assert theirs["requantization"] / ours["requantization"] == pytest.approx(each[0] / each[1], rel=1e-6)
    assert theirs["softmax"] > 10 * ours["softmax"]
    survey = open_target("rap").varied({"adc_law": "survey"})
    by_survey = {c.name: c.energy_j for c in price(work, phase, survey).components}
    assert by_survey["ADC"] > 5 * ours["ADC"]  # the law decides, as docs/validation.md says


def test_placement_by_mutability_saves_leakage_and_sparsity_saves_reads():
    work, target = llama(4, 768, 2048, 1, 128), open_target("hetero-albert")
    leaks = []
    for leakage in (0.0, target["buffer_leakage"]):  # the backbone in RRAM, or in SRAM like the buffer
        memories = {"weight_leakage": leakage, "logic_leakage": 0, "dram_idle": 0}
        report = price(work, DECODE, target.varied(memories))
        leaks.append(next(c.energy_j for c in report.components if c.name == "leakage"))
    assert leaks[1] / leaks[0] == pytest.approx(1 + target["weight_capacity"] / target["buffer_capacity"])
    dense = {c.name: c.energy_j for c in price(work, DECODE, target.varied({"density": 1})).components}
    sparse = {c.name: c.energy_j for c in price(work, DECODE, target).components}
    assert sparse["weight memory"] / dense["weight memory"] == pytest.approx(5 / 8)  # 1 + 0.5 x 8 bits of 8


def test_a_generation_is_its_parts(demo_folder):
    graph, target = read_graph(demo_folder), open_target("rap")
    found = generation(graph, target, 20, 6)
    prefill = price(operations(graph, Phase.of("prefill", 20)), Phase.of("prefill", 20), target)
    steps = [price(operations(graph, p), p, target) for p in (Phase.of("decode", c) for c in range(21, 26))]
    assert found.prefill_s == prefill.latency_s
    assert found.decode_s == pytest.approx(sum(s.latency_s for s in steps))
    assert found.decode_j == pytest.approx(sum(s.energy_j for s in steps))
    longer = generation(graph, target, 20, 300)
    exact = sum(
        price(operations(graph, p), p, target).latency_s for p in (Phase.of("decode", c) for c in range(21, 320))
    )
    assert longer.decode_s == pytest.approx(exact, rel=0.02)  # nine contexts instead of 299
    assert generation(graph, target, 20, 1).decode_s == 0
    with pytest.raises(InputError, match="1 token or more"):
        generation(graph, target, 0, 5)


def test_a_generation_whose_width_changes_is_its_parts(tmp_path):
    """A schedule of nested codes: step 0 is the token behind the first. Fewer bits are fewer bytes and less energy."""
    whole, target = read_graph(write_tiny(tmp_path / "nested", {}, NESTED)), open_target("rap")
    wide, narrow = (at_width(whole, bits, shape_at) for bits in (4, 2))
    found = generation(wide, target, 20, 7, later=[(0, wide), (2, narrow), (90, wide)])
    one_by_one = [(wide, 21), (wide, 22), (narrow, 23), (narrow, 24), (narrow, 25), (narrow, 26)]
    steps = [price(operations(g, p), p, target) for g, p in ((g, Phase.of("decode", c)) for g, c in one_by_one)]
    assert found.decode_s == pytest.approx(sum(s.latency_s for s in steps))
    assert found.decode_j == pytest.approx(sum(s.energy_j for s in steps))
    assert found.contexts == (21, 22, 23, 24, 25, 26)
    board = open_target("rpi5")  # which reads every weight from memory
    always, falling = (generation(wide, board, 20, 7, later=later) for later in ((), [(0, wide), (2, narrow)]))
    assert falling.decode_s < always.decode_s and falling.decode_j < always.decode_j
    assert generation(wide, target, 20, 300, later=[(0, wide)]) == generation(wide, target, 20, 300)
    moved = [sum(op.weight_bytes for op in operations(g, DECODE)) for g in (narrow, wide, whole)]
    assert moved[0] < moved[1] < moved[2]  # as stored, it has the codebooks of all widths


def test_every_target_prices_every_phase_of_a_real_model(demo_folder):
    for phase in ("prefill", "decode"):
        for report in estimate(demo_folder, target_names(), phase, 256):
            assert report.latency_s > 0 and report.energy_j > 0 and report.macs > 0


def test_speed_of_the_model_itself():
    """Issue's bounds: a 7B model on one target under 1 s, 1,000 variants under 60 s."""
    work = llama(32, 4096, 11008, 1, 1024)
    start = time.perf_counter()
    price(work, Phase.of("decode", 1024), open_target("rap"))
    assert time.perf_counter() - start < 1
    start = time.perf_counter()
    values = tuple(str(v) for v in range(1, 11))
    variations = [("adc_bits", values), ("arrays", tuple(f"{256 * v}" for v in range(1, 11))), ("vector_lanes", values)]
    found = sweep([Model("seven billion", lambda phase: work)], Start("rap"), variations)
    assert len(found) == 1000 and time.perf_counter() - start < 60
