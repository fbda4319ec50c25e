"""A day of tasks: what lies where, what a switch rewrites, and sums that close."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.adapters.folder import folder_sites
from export.adapters.store import read_adapter
from export.contract.errors import InputError
from hw_model.claims.stored import resolved
from hw_model.claims.tasks import SECONDS, Task, day, own_bytes, switches, with_adapter
from hw_model.estimate import open_target, price
from hw_model.graph_work.workload import Operation, Phase, operations
from tests.hw_model.test_books import family
from tests.peft_folders import random_pairs, write_peft
from toolchain.adapters.adding import add_adapter

PHASE = Phase.of("prefill", 16)
TASKS = [Task("a", 300, 4, ("query", "value")), Task("b", 100, 8, ("query",), 3)]


@pytest.fixture(scope="module")
def albert(tmp_path_factory) -> list[Operation]:
    """A tiny ALBERT: all layers share one block."""
    return operations(family("albert", tmp_path_factory.mktemp("albert")), PHASE)


def test_an_adapter_is_counted_as_its_factors(albert):
    task = TASKS[1]
    found = with_adapter(albert, task)
    queries = [op for op in albert if op.name.endswith("/query")]
    assert len(queries) > 1 and sum(not op.again for op in queries) == 1
    more = sum(op.macs for op in found) - sum(op.macs for op in albert)
    each = task.rank * (queries[0].rows + queries[0].columns) * PHASE.tokens
    head = [op for op in found if op.name == "b/head"]
    assert more == each * len(queries) + head[0].macs and head[0].rows == 3
    norms = sum(op.stored for op in albert if op.kind not in ("linear", "embedding"))
    factors = task.rank * (queries[0].rows + queries[0].columns)
    assert own_bytes(found) == norms + factors + 3 * head[0].columns


def test_what_changes_lies_in_sram_and_the_backbone_does_not(albert):
    target = open_target("hetero-albert")
    plain, adapted = (price(work, PHASE, target, ranged=False) for work in (albert, with_adapter(albert, TASKS[0])))
    energy = [{part.name: part.energy_j for part in report.components} for report in (plain, adapted)]
    assert energy[1]["weight memory"] == pytest.approx(energy[0]["weight memory"])  # the backbone, as before
    assert energy[1]["buffer"] > energy[0]["buffer"] and energy[1]["DRAM"] < energy[0]["DRAM"]  # norms came from DRAM
    none = target.varied({"buffer_capacity": 0})
    outside = price(with_adapter(albert, TASKS[0]), PHASE, none, ranged=False)
    assert outside.memory_bytes > adapted.memory_bytes


@pytest.mark.parametrize("mixed", [True, False])
def test_a_day_closes(albert, mixed):
    target = open_target("hetero-albert")
    days = day(albert, PHASE, target, TASKS, mixed)
    adapters, sram, rram = days
    for one in days:
        assert one.joules == pytest.approx(one.requests * one.request_j + one.switches * one.switch_j + one.rest_j)
        assert one.requests == 400 and one.switches == switches(TASKS, mixed)
    assert adapters.switch_bytes < sram.switch_bytes == rram.switch_bytes
    assert adapters.switch_j < sram.switch_j < rram.switch_j and adapters.switch_s < sram.switch_s <= rram.switch_s
    assert adapters.rest_j == pytest.approx(
        (SECONDS - adapters.busy_s) * target["buffer_capacity"] * target["buffer_leakage"]
    )
    assert sram.rest_j > adapters.rest_j and sram.area_mm2 > adapters.area_mm2
    shares = [0.75, 0.25]
    requests = [price(with_adapter(albert, task), PHASE, target, ranged=False) for task in TASKS]
    assert adapters.request_j == pytest.approx(sum(s * r.energy_j for s, r in zip(shares, requests)))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 3), min_size=2, max_size=3))
def test_expected_switches_are_those_of_all_orders(counts):
    """Every order of the requests, the first load counted."""
    tasks = [Task(str(i), count, 1, ("query",)) for i, count in enumerate(counts)]
    requests = [task.name for task in tasks for _ in range(task.requests)]
    orders = list(itertools.permutations(requests)) if len(requests) <= 7 else None
    if orders is None:
        rng = np.random.default_rng(1)
        orders = [list(rng.permutation(requests)) for _ in range(4000)]
    changes = np.mean([1 + sum(a != b for a, b in itertools.pairwise(order)) for order in orders])
    assert switches(tasks, True) == pytest.approx(changes, rel=1e-9 if len(requests) <= 7 else 0.03)
    assert switches(tasks, False) == len(tasks) and sum(Counter(requests).values()) == sum(counts)


@pytest.mark.parametrize("variant, ends", [("llama", ("q_proj", "down_proj")), ("albert", ("query", "ffn_output"))])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_folders_own_adapters_are_counted_as_stored(variant, ends, bits, tmp_path):
    """Two LoRA adapters of one exported model, of other ranks and modules: their bytes, and the products they add."""
    graph = family(variant, tmp_path)
    for name, rank, only in (("law", 4, ends[0]), ("sums", 2, ends[1])):
        pairs = random_pairs(folder_sites(graph), rank, only=only)
        add_adapter(graph.folder, name, write_peft(tmp_path / name, pairs, r=rank), bits, False)
    work = operations(graph, PHASE)
    tasks = resolved(graph, [Task.of("law:3"), Task.of("sums:1"), Task.of(f"own:1:4:{ends[0]}")])
    for task, rank, only in zip(tasks, (4, 2), ends):
        stored, found = read_adapter(graph.folder, task.name), with_adapter(work, task)
        assert own_bytes(found) == stored.nbytes()
        sites = [op for op in work if op.kind == "linear" and op.name.endswith(only)]
        more = sum(op.macs for op in found) - sum(op.macs for op in work)
        assert sites and more == sum(rank * (op.rows + op.columns) for op in sites) * PHASE.tokens
    assert not tasks[2].terms and len(day(work, PHASE, open_target("hetero-albert"), tasks[:2], True)) == 3
    with pytest.raises(InputError, match="other"):
        resolved(graph, [Task.of("other:3")])
    with pytest.raises(InputError, match="no adapter of a folder"):
        with_adapter(work, Task.of("law:3"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "a:0",
        ":3",
        "a:x",
        "a:1:2",
        "a:x:2:query",
        "a:1:0:query",
        ":1:2:query",
        "a:1:2:",
        "a:1:2:query:0",
        "a:1:2:query:3:4",
        "a:-1:2:q",
    ],
)
def test_bad_tasks(text):
    with pytest.raises(InputError, match="--task"):
        Task.of(text)


def test_bad_days(albert):
    target = open_target("hetero-albert")
    for tasks, machine, message in [
        (TASKS[:1], target, "two tasks or more"), ([TASKS[0], TASKS[0]], target, "two tasks or more"),
        (TASKS, open_target("rap"), "of kind stream"),
        ([*TASKS, Task("c", 1, 1, ("nothing",))], target, "no matrix is called 'nothing'; there are"),
        ([*TASKS, Task("c", 10**9, 1, ("query",))], target, "at most"),
        ([*TASKS, Task("c", 1, 10**6, ("query",))], target, "rank 1000000 of .*query.*, a matrix of"),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=message):
            day(albert, PHASE, machine, tasks, True)
    slow = target.varied({"clock": 1e3})
    with pytest.raises(InputError, match="longer than the day"):
        day(albert, PHASE, slow, [Task("a", 10**6, 1, ("query",)), TASKS[1]], True)
    assert math.isfinite(day(albert, PHASE, target, TASKS, True)[0].joules)
