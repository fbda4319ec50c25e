"""The cost model: work counted against closed formulas, published cycle counts and decode rows, refusal of unknowns."""

from __future__ import annotations

import shutil

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.contract.errors import InputError
from export.lowering.folder import Lowering, write_lowered_folder
from export.model_folder import write_model_folder
from hw_model.estimate import estimate, workload
from hw_model.graph_work.attention_nodes import causal_pairs
from hw_model.graph_work.workload import Operation, Phase
from hw_model.machines import attentionlego, cpu
from targets import load_target
from tests.export.graph.families import FloatCheckpoint, tiny_model

LINEAR = 4 * (2 * 192 * 192 + 2 * 64 * 192 + 3 * 192 * 512)  # weights in the bundled model's blocks
HEAD = 1536 * 192


def total(operations, field, kind=None):
    return sum(getattr(op, field) for op in operations if kind in (None, op.kind))


def test_macs_and_bytes_of_the_bundled_model(demo_folder, demo_checkpoint):
    decode = workload(demo_folder, "decode", 100)
    assert total(decode, "macs", "linear") == LINEAR + HEAD
    assert total(decode, "macs", "attention") == 4 * 2 * 100 * 6 * 32
    records = demo_checkpoint.records
    stored = demo_checkpoint.manifest["totals"]["linear_bytes"] + records["model.embed_tokens"].bytes
    assert total(decode, "weight_bytes", "linear") == stored  # every stored byte of every matrix, the tied head once
    assert total(decode, "cache_read_bytes") == 4 * 2 * 100 * 2 * 32 * 4
    prefill = workload(demo_folder, "prefill", 100)
    assert total(prefill, "macs", "linear") == 100 * (LINEAR + HEAD)
    assert total(prefill, "macs", "attention") == 4 * 2 * (100 * 101 // 2) * 6 * 32
    assert total(prefill, "weight_bytes", "linear") == stored


def test_prefill_is_the_sum_of_decodes_in_arithmetic(demo_folder):
    prefill = total(workload(demo_folder, "prefill", 16), "macs")
    assert prefill == sum(total(workload(demo_folder, "decode", c), "macs") for c in range(1, 17))


def llama(name, layers, hidden, feed_forward, kv, vocabulary, size):
    """The decode work of a Llama shape whose quantized file has `size` bytes, as one linear operation."""
    weights = layers * (2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * feed_forward) + hidden * vocabulary
    return Operation(name, "linear", macs=weights, weight_bytes=int(size))


@pytest.mark.parametrize(
    "size_gb, published", [(2.01, 4.61), (4.92, 1.99), (2.01, 4.88), (4.92, 2.17), (7.37, 1.36)]
)  # hardware_reference.md 2.9: Pi 5 decode rows of 2024, model bytes and tokens per second
def test_the_range_of_a_pi5_holds_its_decode_rows(size_gb, published):
    op = llama("row", 28, 3072, 8192, 1024, 128256, size_gb * 1e9)
    report = cpu.cost([op], Phase.of("decode", 1), load_target("rpi5"), ranged=True)
    assert 0.99 / report.latency_high_s <= 1.03 * published and published <= 1 / report.latency_low_s


@pytest.mark.parametrize("parameters, published", [(1.1e9, 45.0), (6.74e9, 8.1)])
def test_the_range_of_a_pi5_holds_its_prefill_rows(parameters, published):
    op = Operation("row", "linear", macs=int(parameters) * 512, weight_bytes=int(parameters))
    report = cpu.cost([op], Phase.of("prefill", 512), load_target("rpi5"), ranged=True)
    assert 512 / report.latency_high_s <= 1.01 * published and published <= 512 / report.latency_low_s


def test_attentionlego_published_cycles():
    target = load_target("attentionlego")
    projection = Operation("q", "linear", macs=4096 * 128, rows=128, columns=4096)
    attention = Operation("a", "attention", heads=1, kv_heads=1, head_dim=128)
    decode = Phase.of("decode", 2048)
    assert attentionlego._cycles(projection, decode, target, "rtl") == 66
    assert attentionlego._macros(projection, target) == 32
    rtl = attentionlego._cycles(attention, decode, target, "rtl")
    assert rtl == 2 * 64 + 2 * 18433 + 128  # K and V written, scores and P.V at 18,433 cycles, softmax 64 + 64 beats
    assert attentionlego._cycles(attention, decode, target, "ideal") == 2 * 64 + 2 * 32 + 128


def test_reports_are_consistent(demo_folder):
    reports = estimate(demo_folder, ["rpi5", "attentionlego"], "decode", 256)
    for report in reports:
        assert report.latency_s == pytest.approx(sum(k.latency_s for k in report.by_kind))
        assert report.energy_j == pytest.approx(sum(k.energy_j for k in report.by_kind))
        assert report.latency_low_s <= report.latency_s <= report.latency_high_s
        assert report.basis.startswith("modelled")
    assert reports[0].area_mm2 is None and reports[1].area_mm2 > 0
    longer = estimate(demo_folder, ["attentionlego"], "decode", 512)[0]
    assert longer.latency_s > reports[1].latency_s


def test_unknown_operator_is_refused_not_free(demo_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(demo_folder, folder)
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    next(n for n in model.graph.node if n.op_type == "Sigmoid").op_type = "Erf"
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"ai.onnx::Erf .* has no cost model"):
        estimate(folder, ["rpi5"], "decode", 10)


def test_bad_requests(demo_folder):
    for arguments, message in [
        ((["abacus"], "decode", 1), "target 'abacus' is unknown"),
        ((["rpi5"], "train", 1), "--phase must be prefill or decode"),
        ((["rpi5"], "decode", 0), "--context must be 1"),
        ((["attentionlego"], "decode", 1, "fast"), "--profile must be one of rtl, ideal"),
    ]:
        with pytest.raises(InputError, match=message):
            estimate(demo_folder, *arguments)


@given(st.integers(0, 40), st.integers(1, 40), st.integers(0, 50))
def test_query_key_pairs_of_a_window(past, tokens, window):
    seen = [min(past + t + 1, window or 10**9) for t in range(tokens)]
    assert causal_pairs(Phase("prefill", tokens, past), window) == sum(seen)


def test_a_sliding_window_is_read_from_the_graph(tmp_path):
    tiny_model("mistral", tmp_path / "source")  # a window of 6
    (tmp_path / "out").mkdir()
    write_model_folder(FloatCheckpoint(tmp_path / "source"), tmp_path / "out")
    near, far = (workload(tmp_path / "out", "decode", context) for context in (6, 60))
    for field in ("macs", "cache_read_bytes"):
        assert total(near, field, "attention") == total(far, field, "attention") > 0
    tiny_model("bert", tmp_path / "bert")
    (tmp_path / "encoder").mkdir()
    write_model_folder(FloatCheckpoint(tmp_path / "bert"), tmp_path / "encoder")
    encoder = workload(tmp_path / "encoder", "prefill", 16)
    assert total(encoder, "macs", "attention") == 2 * 2 * 16 * 16 * 32 and total(encoder, "cache_read_bytes") == 0
    with pytest.raises(InputError, match="has no cache, as an encoder"):
        workload(tmp_path / "encoder", "decode", 16)


def test_a_lowered_graph_is_the_same_work(demo_folder, tmp_path):
    (tmp_path / "out").mkdir()
    passes = ("group_query_attention", "matmul_nbits")
    write_lowered_folder(demo_folder, tmp_path / "out", Lowering("test", passes))
    for phase in ("decode", "prefill"):
        ours, lowered = (workload(folder, phase, 100) for folder in (demo_folder, tmp_path / "out"))
        for kind in ("linear", "attention"):
            assert total(ours, "macs", kind) == total(lowered, "macs", kind)
        assert total(ours, "cache_read_bytes") == total(lowered, "cache_read_bytes")
    linear = [op for op in lowered if op.kind == "linear"]
    assert all(8 <= op.weight_bits < 10.1 for op in linear)  # 8 bits and a float32 scale for 16 columns or more
