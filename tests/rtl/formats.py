"""Units of other formats than SDR, with what each must compute: bit planes, Tender's element, INT4, MXFP4, 2:4.

Operands are the same layer's tensors in 4 bits (in 8 with two of four weights), as each format has them.
"""

from __future__ import annotations

import numpy as np

from export.contract.formats.mxfp4 import BIAS, GROUP, HALVES
from export.contract.formats.sparse_codes import largest
from export.contract.operators.tender import calibrated, channel_order, placed
from tests.rtl.units import Tensors, Unit, Vectors, _accumulate, _bus, _narrow, _plain, _ports, _stream

_LANES, _WIDTH, _GROUPS = 64, 4, 14
Outputs = dict[str, list[int]]


def _planes(bipolar: bool):  # type: ignore[no-untyped-def]
    """W4A4, plane by plane: 16 cycles for each 64 columns."""

    def make(tensors: Tensors) -> tuple[Vectors, Outputs]:
        w, a, clear = (np.asarray(part) for part in _stream(tensors, _LANES))
        w, a = _narrow(w, _WIDTH) + 2 ** (_WIDTH - 1), _narrow(a, _WIDTH) + 2 ** (_WIDTH - 1)  # codes from zero on
        pairs = [(s, t) for s in range(_WIDTH) for t in range(_WIDTH)]
        planes_w, planes_a = ((v[:, None] >> np.arange(_WIDTH)[:, None]) & 1 for v in (w, a))
        w_bits = np.stack([planes_w[:, s] for s, _ in pairs], axis=1).reshape(-1, _LANES)
        a_bits = np.stack([planes_a[:, t] for _, t in pairs], axis=1).reshape(-1, _LANES)
        shift = np.tile([s + t for s, t in pairs], len(w))
        begins = np.zeros(len(w_bits), bool)
        begins[:: len(pairs)] = clear
        ones = (w_bits == a_bits).sum(axis=1) * 2 - _LANES if bipolar else (w_bits & a_bits).sum(axis=1)
        sums = _accumulate(ones << shift, begins)
        odd = lambda v: 2 * v - (2**_WIDTH - 1) if bipolar else v  # noqa: E731
        assert sums[len(pairs) - 1 :: len(pairs)] == _accumulate((odd(w) * odd(a)).sum(axis=1), clear)
        return {"clear": begins, "w": _bus(w_bits, 1), "a": _bus(a_bits, 1), "shift": shift}, {"acc": sums}

    return make


def _tender(tensors: Tensors) -> tuple[Vectors, Outputs]:
    """Channels in the order of their groups, a cycle for each shift between them."""
    a = tensors.activations.astype(np.float64)
    middle, shifts, unit = calibrated(a.min(axis=0), a.max(axis=0), _GROUPS, _WIDTH)
    order, runs = channel_order(shifts, 1)
    step = unit * 2.0 ** runs.astype(np.float64)
    codes = np.clip(np.rint(placed(a - middle, order) / step), -7, 7).astype(np.int64)
    weights = placed(_narrow(tensors.weights, _WIDTH), order)
    rows, out = [], []
    for own, x in zip(weights, codes):
        acc = 0
        for place, (w, v) in enumerate(zip(own, x)):
            for _ in range(int(runs[place - 1]) - int(runs[place]) if place else 0):
                acc <<= 1
                rows.append((0, 1, w, v))
                out.append(acc)
            acc += int(w) * int(v)
            rows.append((int(place == 0), 0, w, v))
            out.append(acc)
        assert acc == int(((x << runs.astype(np.int64)) @ own) >> int(runs[-1]))
    clear, shift, w, v = np.array(rows).T
    return {"clear": clear, "shift": shift, "w": w, "a": v}, {"acc": out}


def _microscaled(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes and stored exponents of rows whose neighbours share a power of two: int64 [rows, K], [rows, K / 32]."""
    blocks = values.reshape(len(values), -1, GROUP).astype(np.float64)
    top = np.abs(blocks).max(axis=2, keepdims=True)
    exponent = np.floor(np.log2(np.maximum(top, 1e-9))) - 2  # E2M1's largest power of two is 4
    codes = np.abs(2 * blocks[..., None] / 2.0 ** exponent[..., None] - HALVES).argmin(axis=3)
    return codes.reshape(values.shape), exponent[..., 0].astype(np.int64) + BIAS


def _mxfp4(tensors: Tensors) -> tuple[Vectors, Outputs]:
    count = len(tensors.pairs())
    (cw, ew), (ca, ea) = _microscaled(tensors.weights[:count]), _microscaled(tensors.activations[:count])
    clear = np.arange(cw.size // 16) % (cw.shape[1] // 16) == 0
    cw, ca = cw.reshape(-1, 16), ca.reshape(-1, 16)
    ew, ea = (np.repeat(e.reshape(-1), GROUP // 16) for e in (ew, ea))
    sums = (HALVES[cw].astype(np.int64) * HALVES[ca]).sum(axis=1)
    out, total = [], np.float32(0)
    for value, power, begins in zip(sums, ew + ea - 2 * BIAS - 2, clear):
        total = (np.float32(0) if begins else total) + np.float32(value) * np.float32(2.0**power)
        out.append(int(total.view(np.uint32)) if total != 0 else 0)
    return {"clear": clear, "w": _bus(cw, 4), "a": _bus(ca, 4), "scale_w": ew, "scale_a": ea}, {"sum": out}


def _two_of_four(tensors: Tensors) -> tuple[Vectors, Outputs]:
    """The larger two weights of every four, each with its place among them."""
    w, a, clear = (np.asarray(part) for part in _stream(tensors, 32))
    a = _narrow(a, 8)
    kept = largest(np.abs(w).astype(np.float64), 2, 4) == 1
    place = np.broadcast_to(np.arange(32) % 4, w.shape)[kept].reshape(-1, 16)
    sums = np.where(kept, w * a, 0).sum(axis=1)
    vectors = {"clear": clear, "w": _bus(w[kept].reshape(-1, 16), 8), "a": _bus(a, 8), "place": _bus(place, 2)}
    return vectors, {"acc": _accumulate(sums, clear)}


FORMATS = (
    Unit("bitplane_and", _ports(_LANES, _LANES, shift=4), {"acc": 32}, _LANES, _planes(bipolar=False)),
    Unit("bitplane_xnor", _ports(_LANES, _LANES, shift=4), {"acc": 32}, _LANES, _planes(bipolar=True)),
    Unit("tender_mac", {"clear": 1, "shift": 1, "w": 4, "a": 4}, {"acc": 32}, 1, _tender),
    Unit("dot16_4x4", _ports(64, 64), {"acc": 32}, 16, _plain(4, 4, 16)),
    Unit("mxfp4_dot16", _ports(64, 64, scale_w=8, scale_a=8), {"sum": 32}, 16, _mxfp4),
    Unit("sparse_dot16", _ports(128, 256, place=32), {"acc": 32}, 16, _two_of_four),
)
