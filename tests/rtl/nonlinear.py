"""Units of requantization and of softmax, in integers and in floating point, with what each must compute.

Operands follow the same layer's tensors as those of the dot units: accumulators are its dot products, scores a row of
them; float operands are what a lane of dequantize-quantize, of an exponential and of a division sees.
"""

from __future__ import annotations

import numpy as np

from hw_model.functional import rap
from tests.rtl.units import Tensors, Unit, Vectors

_VECTOR = 128  # accumulators that share a shift: outputs of an array
_KEYS = 256  # scores of a row
Outputs = dict[str, list[int]]


def accumulators(tensors: Tensors) -> np.ndarray:
    """Dot products of 8-bit weights and activations: int64 [vectors, 128]."""
    narrow = np.rint(tensors.activations * (127 / max(int(np.abs(tensors.activations).max()), 1))).astype(np.int64)
    found = (narrow @ tensors.weights.T).reshape(-1)
    return np.resize(found, (max(len(found) // _VECTOR, 4), _VECTOR))


def _shift_parse(tensors: Tensors) -> tuple[Vectors, Outputs]:
    vectors = accumulators(tensors)
    values, shifts = rap.shift_parse(vectors, 8)
    looked = vectors.reshape(-1)
    kept = np.concatenate([np.zeros(_VECTOR, np.int64), looked[:-_VECTOR]])
    known = np.concatenate([np.zeros(_VECTOR, np.int64), values.reshape(-1)[:-_VECTOR]]) & 255
    by = np.concatenate([np.zeros(_VECTOR, np.int64), np.repeat(shifts[:-1, 0], _VECTOR)])
    places = np.arange(len(looked))
    given = {"reset": (places == 0).astype(int), "take": (places % _VECTOR == 0).astype(int), "x": looked, "kept": kept}
    return given, {"q": [int(v) for v in known], "shift": [int(v) for v in by]}


def _softmax(tensors: Tensors) -> tuple[Vectors, Outputs]:
    rows = np.resize(accumulators(tensors).reshape(-1), (4, _KEYS))
    spread = np.maximum(np.abs(rows).max(axis=1, keepdims=True), 1)
    scores = np.clip(np.rint(rows * 512 / spread), -32768, 32767).astype(np.int64)  # 16 either way, 6 bits of fraction
    scores[0, :3] = (-32768, 32767, 0)
    exponentials = rap.exponentials(scores, 6, 16)
    totals = np.broadcast_to(exponentials.sum(axis=1, keepdims=True), exponentials.shape)
    x, largest = scores.reshape(-1), np.repeat(scores.max(axis=1), _KEYS)
    given = {"x": x, "largest": largest, "kept": exponentials.reshape(-1), "total": totals.reshape(-1)}
    return given, {
        "e": [int(v) for v in exponentials.reshape(-1)],
        "p": [int(v) for v in rap.softmax(scores).reshape(-1)],
    }


def _bits(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32).view(np.uint32).astype(np.int64)


def _from_integer(tensors: Tensors) -> tuple[Vectors, Outputs]:
    x = accumulators(tensors).reshape(-1)
    x = np.concatenate([x, [2**31 - 1, -(2**31), 2**25 + 1, 2**25 + 3, 0]])
    return {"x": x}, {"y": [int(v) for v in _bits(x.astype(np.float32))]}


def _to_integer(tensors: Tensors) -> tuple[Vectors, Outputs]:
    x = accumulators(tensors).reshape(-1).astype(np.float32)
    x = x * np.float32(127 / max(float(np.abs(x).max()), 1.0))
    x[::7] *= np.float32(4)  # some saturate
    x = np.concatenate([x, np.array([0.5, 1.5, -2.5, 126.5, -127.5, 1e9, -1e-9], np.float32)])
    found = np.clip(np.rint(x), -127, 127).astype(np.int64)
    return {"x": _bits(x)}, {"y": [int(v) & 255 for v in found]}


def _operands(tensors: Tensors) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of a softmax in float32: scores and exponentials."""
    x = np.resize(accumulators(tensors).reshape(-1), 256).astype(np.float32)
    scores = (x / np.float32(max(float(np.abs(x).max()), 1.0)) * np.float32(8)).astype(np.float32)
    return scores, np.exp(scores - np.float32(8)).astype(np.float32)


def _float(work: str):  # type: ignore[no-untyped-def]
    def make(tensors: Tensors) -> tuple[Vectors, Outputs]:
        a, b = _operands(tensors)
        if work == "divide":
            a, b = b, np.repeat(np.abs(b.reshape(-1, 128)).sum(axis=1, dtype=np.float32), 128).astype(np.float32)
        found = {"multiply": lambda: a * b, "add": lambda: a + b, "divide": lambda: a / b}[work]()
        out = np.where(found == 0, np.float32(0), found)  # zero is positive
        return {"a": _bits(a), "b": _bits(b)}, {"y": [int(v) for v in _bits(out)]}

    return make


_TWO = {"a": 32, "b": 32}
NONLINEAR = (
    Unit("shift_parse", {"reset": 1, "take": 1, "x": 32, "kept": 32}, {"q": 8, "shift": 5}, 0, _shift_parse),
    Unit("softmax_integer", {"x": 16, "largest": 16, "kept": 23, "total": 34}, {"e": 23, "p": 16}, 0, _softmax),
    Unit("fp32_from_integer", {"x": 32}, {"y": 32}, 0, _from_integer),
    Unit("integer_from_fp32", {"x": 32}, {"y": 8}, 0, _to_integer),
    Unit("fp32_mul", _TWO, {"y": 32}, 0, _float("multiply")),
    Unit("fp32_sum", _TWO, {"y": 32}, 0, _float("add")),
    Unit("fp32_div", _TWO, {"y": 32}, 0, _float("divide")),
)
