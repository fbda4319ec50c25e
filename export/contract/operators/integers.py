"""The ai.athena operators on integers: names, attributes, shapes and a numpy reference of each. Numpy only.

SdrQuantize(X, unit) -> codes, flags, units
    X       float32 [..., K]
    unit    float32 [1]: what one step of the integers is worth; ignored where per_token is 1
    codes   int8 (int16 where width > 8) [..., G, g], the last group filled up with zeros
    flags   uint8 [..., G]
    units   float32 [..., 1]
    units = unit, or max |X| / (2**(basis-1) - 1) of each row; codes and flags are the razored round(X / units)
    (export/contract/sdr.py). Attributes: basis, width, group_size (g), twos_complement, half_even, per_token,
    code_type (the ONNX element type of codes). G = ceil(K / g).

SdrMatMul(codes, flags, units, weight_codes, codebook, weight_flags, scale) -> Y float32 [..., N]
    weight_codes, codebook, scale   as in CodebookMatMul (export/contract/formats/codebook.py), one codebook along a row
    weight_flags                    uint8 [N or 1, ceil(G / 2)], two a byte, the earlier group in the low half
    W[n, k] = codebook[n // rows_per_codebook, code[n, k]],  S[n] = sum over groups of
    (sum_k in group W[n, k] codes[k]) << (weight_flags[n, group] + flags[group]), exact in int64
    Y[n] = float32(S[n]) * units * scale[n // rows_per_scale]
    Attributes: those of CodebookMatMul but group_size, which is the g of both sides' flags.
    Razored weights have the table of sign and magnitude as codebook; int8 codebook entries of any other method need no
    flags at all.

SdrAttention(Q, K, V, mask, past_key, past_value, key_unit, value_unit) -> Y, present_key, present_value
    Attention with the key-value cache kept razored: see export/contract/operators/attention.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from export.contract.formats.codebook import CodebookLayout
from export.contract.packing import unpack
from export.contract.sdr import (
    HALF_EVEN,
    HALF_UP,
    SIGN_MAGNITUDE,
    TWOS_COMPLEMENT,
    SdrFormat,
    razor,
    to_integers,
    unpack_flags,
)

SDR_QUANTIZE = "SdrQuantize"
SDR_MATMUL = "SdrMatMul"
SDR_ATTENTION = "SdrAttention"
_INT8, _INT16 = 3, 5  # onnx.TensorProto


def format_attributes(form: SdrFormat) -> dict[str, int]:
    """ONNX attributes of an SDR format, by name."""
    return {
        "basis": form.basis,
        "width": form.width,
        "group_size": form.group_size,
        "twos_complement": int(form.variant == TWOS_COMPLEMENT),
        "half_even": int(form.ties == HALF_EVEN),
    }


def format_of(attributes: Mapping[str, Any]) -> SdrFormat:
    """Inverse of format_attributes. Raises KeyError, TypeError or ValueError when they are none."""
    basis, width, group = (attributes[name] for name in ("basis", "width", "group_size"))
    if not all(type(n) is int for n in (basis, width, group)):
        raise TypeError("basis, width and group_size must be whole numbers")
    variant = TWOS_COMPLEMENT if attributes["twos_complement"] else SIGN_MAGNITUDE
    return SdrFormat(basis, width, group, variant, HALF_EVEN if attributes["half_even"] else HALF_UP)


def code_type(form: SdrFormat) -> int:
    """ONNX element type of the codes."""
    return _INT8 if form.width <= 8 else _INT16


@dataclass(frozen=True)
class IntegerLayout:
    """The attributes of one SdrMatMul."""

    bits: int
    K: int
    N: int
    group_size: int  # columns that share a flag, of weights and activations
    rows_per_codebook: int = 1
    rows_per_scale: int = 1

    def __post_init__(self) -> None:
        self.stored()
        if self.group_size < 1:
            raise ValueError(f"group_size must be at least 1, not {self.group_size}")

    def stored(self) -> CodebookLayout:
        """Layout of codes, codebook and scale."""
        return CodebookLayout(self.bits, self.K, self.N, 0, self.rows_per_codebook, self.rows_per_scale)

    @property
    def groups(self) -> int:
        """G, flags along a row."""
        return -(-self.K // self.group_size)

    def attributes(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def check(self, codes: np.ndarray, codebook: np.ndarray, flags: np.ndarray, scale: np.ndarray) -> None:
        """Raise ValueError when an array does not have the dtype and shape that the contract asks for."""
        self.stored().check(codes, codebook, scale)
        shapes = [(rows, -(-self.groups // 2)) for rows in (self.N, 1)]
        if flags.dtype != np.uint8 or flags.shape not in shapes:
            raise ValueError(f"flags are {flags.dtype.name} {list(flags.shape)}, expected uint8 {list(shapes[0])}")


def sdr_quantize(
    x: np.ndarray, unit: np.ndarray, form: SdrFormat, per_token: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reference of SdrQuantize."""
    units = np.broadcast_to(np.asarray(unit, np.float32).reshape(-1)[:1], (*x.shape[:-1], 1))
    if per_token:
        top = np.abs(x).max(axis=-1, keepdims=True)
        units = np.where(top > 0, top / np.float32(form.limit), np.float32(1.0))
    codes, flags = razor(to_integers(x, units, form), form)
    groups = flags.shape[-1]
    padded = np.zeros((*x.shape[:-1], groups * form.group_size), np.int8 if form.width <= 8 else np.int16)
    padded[..., : codes.shape[-1]] = codes
    return padded.reshape(*x.shape[:-1], groups, form.group_size), flags, units.astype(np.float32)


def weight_integers(layout: IntegerLayout, codes: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """int64 [N, G, g]: codebook entries before their flags, the last group filled up with zeros."""
    code = unpack(codes, layout.bits, layout.K).astype(np.intp)
    rows = np.arange(layout.N)[:, None] // layout.rows_per_codebook
    levels = np.zeros((layout.N, layout.groups * layout.group_size), np.int64)
    levels[:, : layout.K] = codebook[rows, 0, code]
    return levels.reshape(layout.N, layout.groups, layout.group_size)


def sdr_sums(
    layout: IntegerLayout, codes: np.ndarray, flags: np.ndarray, weights: np.ndarray, weight_flags: np.ndarray
) -> np.ndarray:
    """The integers of SdrMatMul: codes [..., G, g] and weights int64 [N, G, g] to int64 [..., N], one shift a group."""
    macs = np.einsum("...gi,ngi->...ng", codes.astype(np.int64), weights)
    shifts = unpack_flags(weight_flags, layout.groups).astype(np.int64) + flags.astype(np.int64)[..., None, :]
    return (macs << shifts).sum(axis=-1)


def sdr_matmul(
    codes: np.ndarray, flags: np.ndarray, units: np.ndarray, layout: IntegerLayout, weight_codes: np.ndarray,
    codebook: np.ndarray, weight_flags: np.ndarray, scale: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Reference of SdrMatMul: float32 [..., N]."""
    layout.check(weight_codes, codebook, weight_flags, scale)
    sums = sdr_sums(layout, codes, flags, weight_integers(layout, weight_codes, codebook), weight_flags)
    by_row = scale.astype(np.float32)[np.arange(layout.N) // layout.rows_per_scale, 0]
    return sums.astype(np.float32) * units * by_row
