"""The operator TenderQuantize: activations in channel groups a power of two apart (arXiv 2406.12930). Numpy only.

TenderQuantize(X, order, middle, shifts, unit) -> codes, flags, units
    X       float32 [..., K]
    order   int32 [P]: the channel at each place, -1 where there is none; every channel has at least one place
    middle  float32 [P]: subtracted from the channel at that place
    shifts  uint8 [R], R = P / group_size: of each run of places; a step of its codes is worth unit * 2**shift
    unit    float32 [1]
    codes   int8 [..., R, group_size], zeros where there is no channel
    flags   uint8 [..., R], the shifts
    units   float32 [..., 1], the unit
    codes = round((X[order] - middle) / (unit * 2**shift)), half to even, within +-(2**(width-1) - 1).
    Attributes: width (2 to 8), group_size.

All that depends on the data is fixed by calibration. The outputs are those of SdrQuantize (integers.py), so that
SdrMatMul multiplies them: sum over runs of (codes . weights) << shift. With runs from the largest shift down that is an
accumulator which moves by one bit between groups (`shift_accumulate`), Tender's processing element; nothing is
requantized. The middles times W are added to the product as a bias.

Groups (the paper's code): with T the largest magnitude of all channels, a channel whose own is within
(T / 2**(G-i), T / 2**(G-1-i)] is of group i, group 0 takes all smaller ones. Only differences matter: shifts count
from the lowest group that has a channel. The paper has groups for each chunk of 256 rows; here one set serves all
positions, because one order of channels is folded into the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

TENDER_QUANTIZE = "TenderQuantize"
MOST_GROUPS = 16
_LEAST_UNIT, _MOST_STEP = 1e-30, 1e30  # float32 steps far from denormal and infinite ones


@dataclass(frozen=True)
class TenderFormat:
    """Attributes of one TenderQuantize. Raises ValueError or TypeError where they are out of range."""

    width: int
    group_size: int

    def __post_init__(self) -> None:
        for name, low, high in (("width", 2, 8), ("group_size", 1, 2**24)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | np.integer):
                raise TypeError(f"{name} must be a whole number, not {value!r}")
            if not low <= value <= high:
                raise ValueError(f"{name} must be {low} to {high}, not {value}")

    @staticmethod
    def of(attributes: Mapping[str, Any]) -> TenderFormat:
        """From untrusted attributes. Raises KeyError, TypeError or ValueError."""
        return TenderFormat(attributes["width"], attributes["group_size"])

    @property
    def limit(self) -> int:
        """Largest magnitude of a code."""
        return int(2 ** (self.width - 1) - 1)

    def attributes(self) -> dict[str, int]:
        return {"width": self.width, "group_size": self.group_size}

    def check(self, columns: int, order: np.ndarray, middle: np.ndarray, shifts: np.ndarray, unit: np.ndarray) -> None:
        """Raises ValueError where the constants are not what the operator asks for."""
        places = order.shape[0] if order.ndim == 1 else 0
        if order.dtype != np.int32 or places == 0 or places % self.group_size:
            raise ValueError(
                f"order is {order.dtype.name} {list(order.shape)}, expected int32 [runs of {self.group_size}]"
            )
        if middle.dtype != np.float32 or middle.shape != (places,) or not np.isfinite(middle).all():
            raise ValueError(f"middle must be {places} finite numbers of float32")
        if shifts.dtype != np.uint8 or shifts.shape != (places // self.group_size,):
            raise ValueError(f"shifts must be uint8 [{places // self.group_size}]")
        if int(shifts.max()) >= MOST_GROUPS:
            raise ValueError(f"shifts must be below {MOST_GROUPS}")
        if unit.dtype != np.float32 or unit.shape != (1,) or not _LEAST_UNIT <= float(unit[0]) <= _MOST_STEP:
            raise ValueError(f"its unit must be one number of float32 from {_LEAST_UNIT:g} to {_MOST_STEP:g}")
        if float(unit[0]) * 2.0 ** int(shifts.max()) > _MOST_STEP:
            raise ValueError("its steps are too large")
        if int(order.max()) >= columns or int(order.min()) < -1:
            raise ValueError(f"order names channels beyond the {columns} there are")


def group_of(largest: np.ndarray, groups: int) -> np.ndarray:
    """The group of channels with these largest magnitudes: int64, from 0 to groups - 1."""
    thresholds = largest.max() / 2.0 ** np.arange(groups - 1, 0, -1)
    return np.searchsorted(thresholds, largest, side="left").astype(np.int64)


def calibrated(low: np.ndarray, high: np.ndarray, groups: int, width: int) -> tuple[np.ndarray, np.ndarray, float]:
    """What calibration fixes, from the lowest and highest values of each channel, float [K].

    Middles float32 [K], shifts uint8 [K], and the unit of shift 0.
    """
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    middle = ((low + high) / 2).astype(np.float32)
    largest = np.maximum(high - middle, middle - low)
    top = float(largest.max())
    if top < _LEAST_UNIT * 2.0**MOST_GROUPS * 2**width:
        return middle, np.zeros(low.size, np.uint8), 1.0
    group = group_of(largest, groups)
    shifts = (group - group.min()).astype(np.uint8)
    return middle, shifts, top / 2.0 ** (groups - 1 - int(group.min())) / (2 ** (width - 1) - 1)


def channel_order(shifts: np.ndarray, group_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Channels sorted by their shifts [K], the largest first, groups filled up to whole runs: order, runs' shifts."""
    order, runs = [], []
    for shift in np.unique(shifts)[::-1]:
        channels = np.flatnonzero(shifts == shift)
        count = -(-channels.size // group_size)
        order.append(np.concatenate([channels, np.full(count * group_size - channels.size, -1)]))
        runs.append(np.full(count, shift))
    return np.concatenate(order).astype(np.int32), np.concatenate(runs).astype(np.uint8)


def placed(values: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The last axis [K] in the order of places [P], zeros where there is no channel."""
    found = np.asarray(values)[..., np.maximum(order, 0)]
    return np.where(order >= 0, found, np.zeros(1, found.dtype))


def tender_quantize(
    x: np.ndarray, order: np.ndarray, middle: np.ndarray, shifts: np.ndarray, unit: np.ndarray, form: TenderFormat
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reference of TenderQuantize. Raises ValueError as TenderFormat.check does."""
    form.check(x.shape[-1], order, middle, shifts, unit)
    runs, outer = shifts.size, x.shape[:-1]
    rest = (x.astype(np.float32)[..., np.maximum(order, 0)] - middle).reshape(*outer, runs, form.group_size)
    step = unit[0] * (2.0 ** shifts.astype(np.float32)).astype(np.float32)
    codes = np.clip(np.rint(rest / step[:, None]), -form.limit, form.limit)
    codes = np.where(order.reshape(runs, -1) >= 0, codes, np.float32(0)).astype(np.int8)
    return codes, np.broadcast_to(shifts, (*outer, runs)).copy(), np.broadcast_to(unit, (*outer, 1)).copy()


def shift_accumulate(codes: np.ndarray, shifts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """What Tender's processing element computes from codes [..., R, g], shifts [R] and weights [N, R, g].

    int64 [..., N]: one accumulator that is shifted by one bit whenever the group changes.
    """
    if (np.diff(shifts.astype(np.int64)) > 0).any():
        raise ValueError("runs must come from the largest shift down")
    total = np.zeros((*codes.shape[:-2], weights.shape[0]), np.int64)
    for run, shift in enumerate(shifts.astype(np.int64)):
        if run:
            for _ in range(int(shifts[run - 1]) - shift):
                total = total << 1
        total = total + np.einsum(
            "...i,ni->...n", codes[..., run, :].astype(np.int64), weights[:, run].astype(np.int64)
        )
    return total << int(shifts[-1])
