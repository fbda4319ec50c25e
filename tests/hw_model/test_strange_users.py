"""Whatever a user sets: figures that are finite and lie in their ranges, or one line that says what is wrong."""

from __future__ import annotations

import math
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from export.contract.errors import InputError
from hw_model.estimate import open_target, price
from hw_model.graph_work.workload import Phase
from hw_model.sizing.silicon import made
from targets import TargetError, target_names
from tests.hw_model.test_machines import llama

VALUES = ["0", "1e-30", "1e30", "0.5", "1", "2", "3", "7.5", "17", "255", "1e9", "1e-9", "1e15", "1e-4", "65536", "24"]
ODD = st.text("0123456789.eE-+/GkMiBsbW ", max_size=9)
TEXTS = st.one_of(st.sampled_from(VALUES), st.floats(0, 1e12).map(repr), ODD)
PHASES = [Phase.of("decode", 1), Phase.of("decode", 300), Phase.of("prefill", 1), Phase.of("prefill", 40)]


@settings(max_examples=150)
@given(st.sampled_from(target_names()), st.sampled_from(PHASES), st.data())
def test_figures_or_one_line(name, phase, data):
    """Up to three constants at once, at an area or the knee, too."""
    target, work = open_target(name), llama(2, 256, 704, phase.tokens, phase.total)
    keys = st.sampled_from(sorted([*target.constants, *target.choices]))
    changes = data.draw(st.dictionaries(keys, TEXTS, min_size=1, max_size=3))
    area = data.draw(st.sampled_from([None, None, None, 1.0, 800.0, 1e7]))
    knee = data.draw(st.sampled_from([False, False, True]))
    objective = data.draw(st.sampled_from(["latency", "energy", "edp"]))
    start = time.process_time()
    try:
        machine = made(work, phase, target.with_changes(changes), area, knee, "rtl", objective)
        report = price(work, phase, machine, objective=objective)
    except (InputError, TargetError) as error:
        assert "\n" not in str(error)
        return
    finally:
        assert time.process_time() - start < 20
    for low, value, high in (
        (report.latency_low_s, report.latency_s, report.latency_high_s),
        (report.energy_low_j, report.energy_j, report.energy_high_j),
        (report.area_low_mm2, report.area_mm2, report.area_high_mm2),
    ):
        if value is not None:
            assert 0 <= low <= value * (1 + 1e-9) and value <= high * (1 + 1e-9) and math.isfinite(high)
    assert report.latency_s > 0 and all(c.energy_j >= 0 and c.area_mm2 >= 0 for c in report.components)
