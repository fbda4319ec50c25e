"""Products by planes and by bytes on every instruction set here against the integer product."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.contract.operators.bit_planes import plane_sums, planes_of
from tests.benchmarks.planes import compiled
from tests.benchmarks.planes.emit import COLUMNS, ByBytes, Planes

WIDTHS = [(1, 1), (1, 8), (2, 3), (3, 2), (4, 4), (4, 8)]
FUNCTIONS = {
    (kind, isa, p, q): compiled.compiled(kind, isa, p, q)
    for kind in (Planes, ByBytes) for isa in compiled.available() for p, q in WIDTHS
}  # fmt: skip


@pytest.mark.parametrize("isa", compiled.available())
@pytest.mark.parametrize("p, q", WIDTHS)
@settings(max_examples=10, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.sampled_from(["random", "ones"]), st.integers(0, 2**31))
def test_sums(isa, p, q, rows, blocks, what, seed):
    rng = np.random.default_rng(seed)
    w, a = (rng.integers(0, 1 << b, (n, COLUMNS * blocks)) for b, n in ((p, rows), (q, 1)))
    if what == "ones":
        w[:], a[:] = (1 << p) - 1, (1 << q) - 1
    if q == 8:
        a = np.minimum(a, 127)  # a byte with a sign
    want = (a @ w.T)[0]
    np.testing.assert_array_equal(plane_sums(planes_of(w, p), planes_of(a, q), w.shape[1])[0], want)
    by_planes = compiled.plane_bytes(w, p), compiled.plane_bytes(a, q)
    by_bytes = compiled.code_bytes(w, p), np.ascontiguousarray(a.astype(np.int8))
    for kind, (weights, x) in ((Planes, by_planes), (ByBytes, by_bytes)):
        sums = np.full(rows, -1, np.int64)
        FUNCTIONS[kind, isa, p, q](weights.ctypes.data, x.ctypes.data, blocks, rows, sums.ctypes.data)
        np.testing.assert_array_equal(sums, want)


def test_cycles_of_an_arm_core():
    found = compiled.cycles(Planes, "neondot", 1, 1)
    if found is None:
        pytest.skip("llvm-mca is not installed")
    assert 5 < found < compiled.cycles(Planes, "neondot", 4, 4)
