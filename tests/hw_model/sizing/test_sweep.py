"""Sweeps: what is varied, which points are comparable, and that lost accuracy is never a silent first place."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.contract.errors import InputError
from hw_model.accuracy import losses
from hw_model.estimate import open_target
from hw_model.graph_work.workload import Phase
from hw_model.sizing.sweep import Model, Point, Start, Values, stored_at, sweep
from hw_model.sizing.variation import parse_changes, parse_variation
from tests.hw_model.test_machines import linear, llama

DECODE = Phase.of("decode", 100)


def model(name: str = "m", kl: float | None = None, bits: float = 3.0) -> Model:
    def work(phase: Phase):
        found = llama(2, 512, 1408, phase.vectors, phase.total)
        return found if bits == 3.0 else stored_at(found, str(bits))[0]

    return Model(name, work, kl)


def swept(target: str, *variations: str, **more) -> list[Point]:
    start = Start(target, context=64, **{k: v for k, v in more.items() if k in ("changes", "objective")})
    return sweep([model()], start, [parse_variation(v) for v in variations], more.get("emulated", lambda m, t: None))


@pytest.mark.parametrize(
    "text, expected",
    [("adc.enob=3:5", ("adc_bits", ("3", "4", "5"))), ("array.rows=64,128", ("rows", ("64", "128"))),
     ("clock=1e8:2e8:5e7", ("clock", ("100000000", "150000000", "200000000"))),
     ("adc.law=survey,pow2", ("adc_law", ("survey", "pow2"))),
     ("dram_bandwidth=12.8GB/s,51.2GB/s", ("dram_bandwidth", ("12.8GB/s", "51.2GB/s"))),
     ("dram_bandwidth=10GB/s:30GB/s:10GB/s", ("dram_bandwidth", ("10GB/s", "20GB/s", "30GB/s")))],
)  # fmt: skip
def test_variations(text, expected):
    assert parse_variation(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "rows", "rows=", "rows=5:3", "rows=1:9:0", "rows=1:2:3:4", "rows=a:b", "rows=0:1e9:1", "x=1GB/s:2MB/s:1GB/s"],
)
def test_bad_variations(text):
    with pytest.raises(InputError, match="--vary"):
        parse_variation(text)


@pytest.mark.parametrize("text", ["rows", "rows=1,2", "rows=1:2", "=3"])
def test_bad_changes(text):
    with pytest.raises(InputError, match="--set"):
        parse_changes((text,))


@pytest.mark.parametrize(
    "text, message",
    [("enobs=3", "has no constant 'enobs'; it has adc_area"), ("adc_law=magic", "must be one of survey"),
     ("rows=-1", "must be 1 to 65536"), ("rows=many", "is no number"), ("clock=0", "clock must be 1 to 1e"),
     ("context=many", "must be whole numbers"), ("context=0", "--context must be"), ("phase=train", "--phase must be"),
     ("batch=0", "--batch must be"), ("bits=0", "from 0.1 to 32"), ("bits=x", "from 0.1 to 32"),
     ("target=abacus", "is unknown"), ("rows=5GB", "is not in 1")],
)  # fmt: skip
def test_bad_values_of_a_sweep(text, message):
    with pytest.raises(InputError, match=message):
        swept("rap", text)
    with pytest.raises(InputError, match="rows is varied twice"):
        swept("rap", "rows=64", "array.rows=128")


def test_the_best_variants_are_those_that_nothing_beats():
    points = swept("rap", "adc_bits=3,4,6", "rows=64,128")

    def costs(p):
        return (p.report.latency_s, p.report.energy_j, p.report.area_mm2)

    for p in points:
        beaten = any(all(a <= b for a, b in zip(costs(q), costs(p))) and costs(q) != costs(p) for q in points)
        assert p.best != beaten or any(costs(q) == costs(p) and q is not p for q in points)


def test_axes_of_the_work():
    """Context, phase, batch and bits change the work; only points of one work are compared."""
    points = swept("rap", "context=16,64", "phase=prefill,decode", "batch=1,4", "target=rap,digital-sram-pim")
    assert len(points) == 16 and len({p.work for p in points}) == 8
    for work in {p.work for p in points}:
        assert any(p.best for p in points if p.work == work)
    for p in points:
        tokens = 1 if p.values["phase"] == "decode" else p.values["context"]
        assert p.report.tokens == tokens * p.values["batch"] and p.report.target == p.values["target"]
    by_bits = swept("rap", "bits=2,3,4", "arrays=1")
    assert [p.report.memory_bytes for p in by_bits] == sorted({p.report.memory_bytes for p in by_bits})
    assert [bool(p.accuracy.losses) for p in by_bits] == [True, False, True]  # the file's own are 3


LOSSY = [
    ("rap-baseline", {"adc_bits": "3"}, "converters of 3 bits"), ("rap", {"rows_active": "16"}, "converters of 4 bits"),
    ("digital-sram-pim", {"weight_bits": "4"}, "weights of 4 bits"), ("qrazor-pim", {}, "weights of 4"),
    ("rap", {"transfer_bits": "2"}, "weights moved at 2 bits"),
    ("digital-sram-pim", {"input_bits": "4"}, "inputs of 4 bits"), ("tender", {}, "weights of 4 bits"),
    ("tender", {}, "activations of 4 bits"), ("bitplane", {"activation_bits": "4"}, "activations of 4 bits"),
    ("hetero-albert", {}, "50 % of the weights"), ("attentionlego", {}, "6 bits"),
]  # fmt: skip


@pytest.mark.parametrize("name, changes, reason", LOSSY)
def test_what_a_machine_loses_is_said(name, changes, reason):
    target = open_target(name).with_changes(changes)
    assert any(reason in found for found in losses(target, [linear(64, 64)]))
    for exact in ("rap", "rap-baseline", "digital-sram-pim", "bitplane", "rpi5"):
        assert not losses(open_target(exact), [linear(64, 64)])


def test_a_lossy_point_is_ranked_by_what_was_measured_only():
    """Three converter bits under 128 rows are cheaper and smaller: first by cost, never by rank until emulated."""
    varied = ("adc_bits=3,8",)
    lossy, exact = swept("rap-baseline", *varied)
    assert lossy.report.area_mm2 < exact.report.area_mm2 and lossy.report.energy_j < exact.report.energy_j
    assert exact.best and not lossy.best and lossy.accuracy.text().startswith("accuracy not measured: converters of 3")
    lossy, exact = swept("rap-baseline", *varied, emulated=lambda m, t: 0.5)
    assert exact.best and lossy.best and lossy.accuracy.text() == "KL 0.5000" and exact.accuracy.kl is None
    assert exact.to_json()["lossless"] and lossy.to_json()["kl"] == 0.5


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([2, 3, 4, 8]), min_size=1, max_size=3, unique=True), st.booleans())
def test_no_point_of_unknown_accuracy_is_best(bits, measured):
    emulated = (lambda m, t: 0.1) if measured else (lambda m, t: None)
    values: Values = tuple(str(b) for b in bits)
    start = Start("rap-baseline", context=16)
    points = sweep([model()], start, [("adc_bits", values), ("weight_bits", ("4", "8"))], emulated)
    assert all(p.accuracy.is_known for p in points if p.best)
    assert any(p.best for p in points) == any(p.accuracy.is_known for p in points)


def test_several_models_carry_their_own_divergence():
    models = [model("three", 0.2), model("two", 0.6, bits=2.0), model("unmeasured", None, bits=2.0)]
    points = sweep(models, Start("rap", context=16, changes={"arrays": "1"}), [("rows", ("128",))])
    assert [p.values["model"] for p in points] == ["three", "two", "unmeasured"]
    assert points[0].best and points[1].best and [p.accuracy.kl for p in points] == [0.2, 0.6, None]
    assert not points[2].best
