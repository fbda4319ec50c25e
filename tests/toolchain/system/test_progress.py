"""Lines of progress: what they promise, and when they promise nothing."""

from __future__ import annotations

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from toolchain.system import progress
from toolchain.system.progress import Reporter, seconds_left


def test_first_steps_that_compile_do_not_count():
    assert seconds_left([30.0, 25.0], 10) is None
    assert seconds_left([30.0, 25.0, 1.0], 10) == 10.0
    assert seconds_left([30.0, 1.0, 25.0, 1.0, 2.0, 3.0], 4) == 4 * (1 + 1 + 2 + 3) / 4


@given(st.lists(st.floats(0.0, 1e6), max_size=50), st.integers(0, 1000))
def test_it_is_never_less_than_nothing_nor_more_than_the_longest(steps, left):
    found = seconds_left(steps, left)
    assert (found is None) == (len(steps) <= 2)
    assert found is None or 0.0 <= found <= left * max(steps) * (1 + 1e-9)


def test_lines(monkeypatch, capsys):
    now = iter([0.0, 60.0, 61.0, 66.0, 71.0, 80.0])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(now)))
    with Reporter("Doing", 10) as reporter:
        for label in ("a", "b", "c", "d"):
            reporter.step(label)
    lines = capsys.readouterr().err.splitlines()
    # b came within five seconds of the line before it
    assert lines == [
        "Doing 1/10 a",
        "Doing 3/10 c, about 7 s left",
        "Doing 4/10 d, about 18 s left",
        "Doing: done in 80.0 s",
    ]
