"""A process that answers with lines: what counts is what it computes, so that a busy machine makes nobody hostile."""

from __future__ import annotations

import sys
import time

import pytest

from runtime_py.system.line_process import LineProcess

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the clock alone counts")


def process(program: str) -> LineProcess:
    return LineProcess(["-u", "-c", f"import time\nprint('there')\n{program}"])


def test_waiting_for_the_processor_is_no_fault():
    one = process("time.sleep(1.5)\nprint('late')")
    assert one.line(20) == b"there\n"
    assert one.line(0.5) == b"late\n"
    one.close()


@pytest.mark.parametrize("program", ["while True: pass", "time.sleep(600)"], ids=["computes", "sleeps"])
def test_what_never_answers_is_given_up(program):
    one = process(program)
    assert one.line(20) == b"there\n"
    start = time.monotonic()
    with pytest.raises(ValueError, match="longer than 0.5 s"):
        one.line(0.5)
    assert time.monotonic() - start < 60
    one.close()
