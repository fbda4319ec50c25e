"""ATHENA_CHECK=1: one byte beyond an array ends the process, and the engine passes its tests under it."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

TOUCH = """
import ctypes, sys
import numpy as np
from runtime_py.system.guard_pages import aligned_bytes, settled
kept = settled(np.arange(48, dtype=np.float32)) if sys.argv[1] == "settled" else aligned_bytes(192)
assert kept.ctypes.data % 64 == 0
ctypes.string_at(kept.ctypes.data, 192)
print("inside", flush=True)
ctypes.string_at(kept.ctypes.data + 192, 1)
print("outside", flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="protected pages are made with Linux's mprotect")
@pytest.mark.parametrize("kind", ["settled", "aligned"])
def test_one_byte_too_many_ends_the_process(kind):
    environment = {**os.environ, "ATHENA_CHECK": "1"}
    done = subprocess.run([sys.executable, "-c", TOUCH, kind], env=environment, capture_output=True, text=True)
    assert done.stdout == "inside\n" and done.returncode < 0


@pytest.mark.long
def test_a_checked_engine_gives_the_same_logits(demo_folder):
    code = (
        "import numpy as np, sys; from runtime_py.load import open_model\n"
        f"m, _ = open_model({str(demo_folder)!r}); s = m.new_state()\n"
        "a = m.forward(s, list(range(1, 300))); b = m.forward(s, [5])\n"
        "sys.stdout.buffer.write(a.tobytes() + b.tobytes())"
    )
    found = [
        subprocess.run([sys.executable, "-c", code], env={**os.environ, "ATHENA_CHECK": check}, capture_output=True)
        for check in ("0", "1")
    ]
    assert [f.returncode for f in found] == [0, 0], found[1].stderr.decode()[-2000:]
    assert found[0].stdout == found[1].stdout and np.frombuffer(found[0].stdout, np.float32).size > 1000
