"""The units of hw_model/rtl: their ports, what they must compute, and vectors from real or random tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from export.contract.sdr import SdrFormat, code_patterns, razor

WEIGHTS, ACTIVATIONS = SdrFormat(8, 4, 16), SdrFormat(16, 4, 16)
RANDOM = "random"  # the source of tensors that were drawn
Vectors = dict[str, np.ndarray]  # input port -> Python integers [cycles], object dtype where wider than 64 bits


@dataclass(frozen=True)
class Tensors:
    """Integers of a linear layer before razoring: weights int8 [N, K], activations int16 [T, K]; K divisible by 16."""

    weights: np.ndarray
    activations: np.ndarray
    source: str

    @staticmethod
    def random(seed: int, columns: int = 256) -> Tensors:
        """Values of every size, with zeros and extremes among them."""
        rng = np.random.default_rng(seed)
        drawn = []
        for limit, rows in ((127, 6), (32767, 6)):
            size = limit ** rng.random((rows, columns // 16, 1)) * rng.random((rows, columns // 16, 16)) * 1.2
            values = np.clip(np.rint(size * rng.choice([-1, 1], size.shape)), -limit, limit).astype(np.int64)
            values[0, 0], values[1, 0], values[2, 0] = limit, -limit, 0
            drawn.append(values.reshape(rows, columns))
        return Tensors(drawn[0], drawn[1], RANDOM)

    def pairs(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Rows that are multiplied with each other."""
        count = min(len(self.weights), len(self.activations))
        return [(self.weights[i], self.activations[i]) for i in range(count)]


def _bus(fields: np.ndarray, bits: int) -> np.ndarray:
    """Integers [cycles, n] as one wide number a cycle, the first in the lowest bits, two's complement."""
    mask = (1 << bits) - 1
    return np.array([sum((int(v) & mask) << (bits * i) for i, v in enumerate(row)) for row in fields], object)


@dataclass(frozen=True)
class Unit:
    """One module: ports with widths, in the order of the vector; the output checked; MACs a cycle."""

    name: str
    inputs: dict[str, int]
    outputs: dict[str, int]
    macs: int
    make: Callable[[Tensors], tuple[Vectors, dict[str, list[int]]]]

    @property
    def has_clear(self) -> bool:
        return "clear" in self.inputs


def _stream(tensors: Tensors, lanes: int) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Weights and activations int64 [cycles, lanes] row after row, and where a row begins."""
    w = np.concatenate([pair[0].reshape(-1, lanes) for pair in tensors.pairs()])
    a = np.concatenate([pair[1].reshape(-1, lanes) for pair in tensors.pairs()])
    length = tensors.weights.shape[1] // lanes
    return w, a, np.arange(len(w)) % length == 0  # type: ignore[return-value]


def _accumulate(products: np.ndarray, clear: np.ndarray) -> list[int]:
    out, total = [], 0
    for value, begins in zip(products, clear):
        total = (0 if begins else total) + int(value)
        out.append(total)
    return out


def _narrow(values: np.ndarray, bits: int) -> np.ndarray:
    """The same tensor in fewer bits, by its largest magnitude."""
    limit = (1 << (bits - 1)) - 1
    return np.rint(values * (limit / max(int(np.abs(values).max()), 1))).astype(np.int64)


def _plain(bits_w: int, bits_a: int, lanes: int) -> Callable[[Tensors], tuple[Vectors, dict[str, list[int]]]]:
    def make(tensors: Tensors) -> tuple[Vectors, dict[str, list[int]]]:
        w, a, clear = _stream(tensors, lanes)
        w, a = (_narrow(w, bits_w) if bits_w < 8 else w), (_narrow(a, bits_a) if bits_a < 16 else a)
        sums = (np.asarray(w) * a).sum(axis=1)
        return {"clear": clear, "w": _bus(w, bits_w), "a": _bus(a, bits_a)}, {"acc": _accumulate(sums, clear)}

    return make


def _razored(lanes: int) -> Callable[[Tensors], tuple[Vectors, dict[str, list[int]]]]:
    """Codes of groups of 16; a serial unit sees the flags of its group in every cycle."""

    def make(tensors: Tensors) -> tuple[Vectors, dict[str, list[int]]]:
        w, a, clear = _stream(tensors, 16)
        (cw, fw), (ca, fa) = razor(w, WEIGHTS), razor(a, ACTIVATIONS)
        macs = (cw.astype(np.int64) * ca).reshape(-1, lanes).sum(axis=1)
        repeat = 16 // lanes
        shifts = np.repeat((fw.astype(np.int64) + fa)[:, 0], repeat)
        begins = np.zeros(len(macs), bool)
        begins[::repeat] = clear
        vectors = {
            "clear": begins,
            "w": _bus(code_patterns(cw, WEIGHTS).reshape(-1, lanes), 4),
            "a": _bus(code_patterns(ca, ACTIVATIONS).reshape(-1, lanes), 4),
            "flag_w": np.repeat(fw[:, 0], repeat),
            "flag_a": np.repeat(fa[:, 0], repeat),
        }
        return vectors, {"acc": _accumulate(macs << shifts, begins)}

    return make


def _compressor(tensors: Tensors) -> tuple[Vectors, dict[str, list[int]]]:
    _, a, _ = _stream(tensors, 16)
    codes, flags = razor(np.asarray(a), ACTIVATIONS)
    patterns = code_patterns(codes, ACTIVATIONS).astype(np.int64)
    patterns |= (np.asarray(a) < 0).astype(np.int64) << 3  # the gates keep the sign of what became zero
    return {"x": _bus(a, 16)}, {"codes": list(_bus(patterns, 4)), "flag": [int(f) for f in flags[:, 0]]}


def _scaled(tensors: Tensors) -> tuple[Vectors, dict[str, list[int]]]:
    w, a, clear = _stream(tensors, 16)
    w = np.asarray(w)
    tops = np.maximum(np.abs(w).max(axis=1, keepdims=True), 1)
    scale = (tops[:, 0] / 7 / 127).astype(np.float16)
    w4, a4 = np.rint(w * 7 / tops).astype(np.int64), _narrow(np.asarray(a), 4)
    out, total = [], np.float32(0)
    for value, factor, begins in zip((w4 * a4).sum(axis=1), scale, clear):
        total = (np.float32(0) if begins else total) + np.float32(value) * np.float32(factor)
        out.append(int(total.view(np.uint32)) if total != 0 else 0)
    vectors = {"clear": clear, "w": _bus(w4, 4), "a": _bus(a4, 4), "scale": scale.view(np.uint16)}
    return vectors, {"acc": out}


def _ports(w: int, a: int, **more: int) -> dict[str, int]:
    return {"clear": 1, "w": w, "a": a, **more}


FLAGS = {"flag_w": 3, "flag_a": 4}
UNITS = (
    Unit("mac_4x4", _ports(4, 4), {"acc": 24}, 1, _plain(4, 4, 1)),
    Unit("mac_8x8", _ports(8, 8), {"acc": 32}, 1, _plain(8, 8, 1)),
    Unit("mac_8x16", _ports(8, 16), {"acc": 40}, 1, _plain(8, 16, 1)),
    Unit("sdr_mac", _ports(4, 4, **FLAGS), {"acc": 40}, 1, _razored(1)),
    Unit("dot16_8x8", _ports(128, 128), {"acc": 32}, 16, _plain(8, 8, 16)),
    Unit("dot16_8x16", _ports(128, 256), {"acc": 40}, 16, _plain(8, 16, 16)),
    Unit("dot16_decompress", _ports(64, 64, **FLAGS), {"acc": 40}, 16, _razored(16)),
    Unit("dot16_4_fp16", _ports(64, 64, scale=16), {"acc": 32}, 16, _scaled),
    Unit("sdr_dot16", _ports(64, 64, **FLAGS), {"acc": 40}, 16, _razored(16)),
    Unit("sdr_compressor", {"x": 256}, {"codes": 64, "flag": 4}, 0, _compressor),
)
