"""Objects compute what kernels compiled in this process do, and another machine's come out of the same compiler."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys

import numpy as np
import pytest

from export.contract.errors import InputError
from runtime_py.engine.kernels.elementwise import scale_row
from runtime_py.engine.layout.products import width_tag
from runtime_py.engine.objects import drivers, store
from runtime_py.engine.objects.drivers import compile_into
from runtime_py.engine.objects.memory import addresses
from runtime_py.engine.objects.wanted import LOOP, Wanted
from runtime_py.engine.records.call import Call
from runtime_py.engine.steps import table
from runtime_py.engine.steps.elementwise import Scale
from runtime_py.engine.steps.makers import APART, MAKERS, PACKED, PLAIN
from runtime_py.machine.isa import pick
from runtime_py.machine.processor import NAMED, this_processor

ELF_MACHINE = {"x86_64": 62, "aarch64": 183}


def test_an_object_computes_the_bits_of_the_kernel(tmp_path):
    wanted = Wanted("tokens.by_token", "Scale", None, pick())
    compile_into(tmp_path, [wanted], this_processor())
    code = store.read(store.path_in(tmp_path, wanted, this_processor()), wanted, this_processor())
    function = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_int64] * 9)(addresses({wanted.symbol: code})[wanted.symbol])
    tokens, columns = 37, 19
    x = np.random.default_rng(0).standard_normal((tokens, columns)).astype(np.float32)
    out, expected, counter = np.zeros_like(x), np.zeros_like(x), np.zeros(1, np.int64)
    step = np.zeros(table.STEP, np.int64)
    made = Scale(source=x.ctypes.data, stride=columns, factor=0.37, columns=columns, out=out.ctypes.data)
    made.write(step[table.ARGUMENTS :], lambda place, number: number)
    call = np.zeros(len(Call.names()), np.int64)
    numbers = call.ctypes.data, step.ctypes.data, 0, 0, tokens, counter.ctypes.data, 0, 1, 0
    assert function(*numbers) == 0
    for token in range(tokens):
        row = 4 * token * columns
        scale_row(x.ctypes.data + row, np.float32(0.37), columns, expected.ctypes.data + row)
    assert np.array_equal(out.view(np.int32), expected.view(np.int32))


def test_other_machines_objects_are_theirs(tmp_path):
    for name in ("rpi4", "x86-64-v3"):
        other = NAMED[name]
        wanted = Wanted("tokens.by_token", "Scale", None, "neon" if name == "rpi4" else "avx2")
        compile_into(tmp_path, [wanted], other)
        code = store.read(store.path_in(tmp_path, wanted, other), wanted, other)
        assert code[:4] == b"\x7fELF" and int.from_bytes(code[18:20], "little") == ELF_MACHINE[other.architecture]


def test_what_cannot_be_compiled_or_written_is_an_error(tmp_path, monkeypatch):
    with pytest.raises(RuntimeError, match="could not be compiled"):
        compile_into(tmp_path, [Wanted("tokens.nothing", "Scale", None, pick())], this_processor())
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(OSError):
        compile_into(blocked, [Wanted("tokens.by_token", "Scale", None, pick())], this_processor())
    monkeypatch.setattr(drivers, "_START", "raise ImportError(\"No module named 'numba'\")")
    with pytest.raises(InputError, match="--kernels KERNELS"):
        compile_into(tmp_path, [Wanted(LOOP, "", None, pick())], this_processor())


def test_makers_are_there():
    code = (
        "import sys, json, importlib\n"
        "names = json.loads(sys.argv[1])\n"
        "for name in names:\n"
        "    module, function = name.split('.')\n"
        "    assert callable(getattr(importlib.import_module('runtime_py.engine.loop.' + module), function)), name\n"
    )
    names = sorted({name for makers in MAKERS.values() for name in makers.values()} | {LOOP})
    subprocess.run([sys.executable, "-c", code, json.dumps(names)], check=True)
    assert set(PLAIN) == set(range(len(table.KINDS)))
    assert set(PACKED) < set(PLAIN) and set(APART) < set(PLAIN)
    assert width_tag(3).kind == "bits"
