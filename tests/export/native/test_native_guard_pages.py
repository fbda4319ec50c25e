"""The native kernels with every array between protected pages: one byte too many ends the process."""

from __future__ import annotations

import ctypes as c
import mmap
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.contract.packing import row_bytes
from runtime_py.machine.isa import available
from tests.export.native.test_native import GROUPED
from tests.runtime_py.engine.activation_reference import values, with_outliers
from tests.runtime_py.engine.test_products import AMX, LAYOUTS, random_parts

PAGE = mmap.PAGESIZE
_NUMBERS = ("rows", "columns", "row_bytes", "book_rows", "scale_rows", "group_size", "groups")


class Matrix(c.Structure):
    _fields_ = (
        *((name, c.c_void_p) for name in ("codes", "book", "scale")),
        *((name, c.c_int64) for name in _NUMBERS),
        *((name, c.c_int) for name in ("bits", "raw", "half_scale")),
    )


class Activations(c.Structure):
    _fields_ = (
        *((name, c.c_void_p) for name in ("bytes", "sums", "scales", "high")),
        *((name, c.c_int64) for name in ("wide", "blocks")),
    )


_M, _A, _P, _N = c.POINTER(Matrix), c.POINTER(Activations), c.c_void_p, c.c_int64


class Kernels(c.Structure):
    """export/native/kernels.h."""

    _fields_ = (
        ("name", c.c_char_p),
        ("tile_rows", _N),
        ("quantize_token", c.CFUNCTYPE(None, _P, _N, _A)),
        ("quantize_group", c.CFUNCTYPE(None, _P, _N, _N, _N, _A)),
        ("vector", c.CFUNCTYPE(None, _M, _A, _N, _N, _P)),
        ("product", c.CFUNCTYPE(None, _M, _A, _N, _N, _P, _P)),
        ("decode_row", c.CFUNCTYPE(None, _M, _N, _P)),
        ("float_dot", c.CFUNCTYPE(c.c_float, _P, _P, _N)),
    )


@contextmanager
def guard_pages(at_end: bool) -> Iterator:
    """A function that copies an array between two protected pages, to the end or the start of what lies between."""
    libc, regions = c.CDLL(None, use_errno=True), []

    def guarded(array: np.ndarray) -> np.ndarray:
        array = np.ascontiguousarray(array)
        inner = -(-array.nbytes // PAGE) * PAGE
        region = mmap.mmap(-1, inner + 2 * PAGE)
        address = c.addressof(c.c_char.from_buffer(region))
        for page in (address, address + PAGE + inner):
            assert libc.mprotect(c.c_void_p(page), c.c_size_t(PAGE), 0) == 0
        regions.append(region)
        start = PAGE + (inner - array.nbytes if at_end else 0)
        copy = np.frombuffer(region, np.uint8)[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        copy[...] = array
        return copy

    yield guarded


@pytest.mark.parametrize("isa", [*available(), *(["amx"] if AMX else [])])
@settings(max_examples=60)
@given(st.one_of(LAYOUTS, GROUPED), st.integers(1, 40), st.booleans(), st.booleans(), st.integers(0, 2**31))
def test_kernels_stay_within_their_arrays(native_library, isa, layout, tokens, half, at_end, seed):
    rng = np.random.default_rng(seed)
    with pytest.MonkeyPatch.context() as patch, guard_pages(at_end) as guarded:
        patch.setenv("ATHENA_ISA", isa)
        find = c.CDLL(native_library).AthenaKernels
        find.restype = c.POINTER(Kernels)
        kernels = find().contents
        assert kernels.name.decode() == isa
        codes, book, scale = random_parts(layout, rng)
        parts = (codes, book, scale.astype(np.float16) if half else scale)
        stored = [guarded(part) for part in parts]
        group_size = layout.group_size if 0 < layout.group_size < layout.K else layout.K
        matrix = Matrix(
            *(part.ctypes.data for part in stored), layout.N, layout.K, row_bytes(layout.K, layout.bits),
            layout.rows_per_codebook, layout.rows_per_scale, group_size, layout.groups, layout.bits, 0, half,
        )  # fmt: skip
        weights = layout.dequantized(*parts)
        row = guarded(np.zeros(layout.K, np.float32))
        for n in range(layout.N):
            kernels.decode_row(c.byref(matrix), n, row.ctypes.data)
            np.testing.assert_array_equal(row, weights[n])
        x = guarded(with_outliers(rng.standard_normal((tokens, layout.K)).astype(np.float32), rng))
        dot = kernels.float_dot(x.ctypes.data, row.ctypes.data, layout.K)
        assert abs(dot - float(x[0].astype(np.float64) @ row)) <= 2e-6 * float(np.abs(x[0]) @ np.abs(row)) + 1e-30
        if layout.groups > 1:
            return
        wide, blocks = -(-layout.K // 64) * 64, -(-layout.K // 256)
        groups = -(-tokens // 32) * 2
        quantized = [guarded(np.zeros(groups * 16 * wide, np.int8))]
        quantized += [guarded(np.zeros(groups * blocks * 16, kind)) for kind in (np.int32, np.float32)]
        high = 8 + 256 if tokens == 1 else 8 + 4096  # HighToken and HighGroup
        quantized.append(guarded(np.zeros(groups * blocks * high, np.int8)))
        activations = Activations(*(part.ctypes.data for part in quantized), wide, blocks)
        y = guarded(np.zeros((tokens, layout.N), np.float32))
        if tokens == 1:
            kernels.quantize_token(x.ctypes.data, layout.K, c.byref(activations))
            kernels.vector(c.byref(matrix), c.byref(activations), 0, layout.N, y.ctypes.data)
        else:
            for group in range(-(-tokens // 16)):
                kernels.quantize_group(x.ctypes.data, layout.K, tokens, group, c.byref(activations))
            scratch = guarded(np.zeros(kernels.tile_rows * wide + 64, np.uint8))
            for first in range(0, layout.N, kernels.tile_rows):
                kernels.product(
                    c.byref(matrix), c.byref(activations), tokens, first, scratch.ctypes.data, y.ctypes.data
                )
        given = values(x)
        bound = np.abs(given) @ np.abs(weights).astype(np.float64).T + 1
        assert np.all(np.abs(y - given @ weights.astype(np.float64).T) <= 1e-6 * bound)
