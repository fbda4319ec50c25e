"""GPTQ and its kin (AutoGPTQ, GPTQModel, AutoRound): 2 to 8 bits, packed along the columns of the weight.

`qweight` int32 [K * bits / 32, N] and `qzeros` int32 [groups, N * bits / 32] are dense streams of bits along K and N,
`scales` are [groups, N], and `g_idx` int32 [K] gives the group of each column (any order after act-order). The first
version of the format stores zero points less one; GPTQModel's second, and AutoRound's own, as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from export.contract.errors import InputError
from toolchain.source.packings.base import (
    MAX_BITS,
    Grouped,
    Header,
    Packing,
    Read,
    expect,
    in_order,
    matrix,
    size_of_groups,
    unpacked,
)

_FIRST_VERSION = {"gptq": ("gptq",), "auto-round": ("auto_round:auto_gptq",)}
_AS_THEY_ARE = {"gptq": ("gptq_v2",), "auto-round": ("auto_round", "auto_round:gptqmodel")}


def packing(method: str, raw: dict[str, Any]) -> Packing | None:
    if method == "gptq":
        stated = raw.get("checkpoint_format") or raw.get("format") or "gptq"
    elif method == "auto-round":
        stated = raw.get("packing_format") or "auto_round"
        if stated == "auto_round:auto_awq":
            return None
    else:
        return None
    if stated in _FIRST_VERSION[method]:
        return Gptq(raw.get("group_size"), 1)
    if stated in _AS_THEY_ARE[method]:
        return Gptq(raw.get("group_size"), 0)
    raise InputError(f"config.json: quantization_config: {method} in the format {stated!r} cannot be read")


class Gptq(Packing):
    TITLE, FIRST, NEEDED, OPTIONAL = "GPTQ", "qweight", ("qzeros", "scales"), ("g_idx",)

    def __init__(self, group_size: object, offset: int) -> None:
        """offset: what is added to the stored zero points."""
        self._group_size, self._offset = group_size, offset

    def shape(self, headers: Mapping[str, Header], read: Read) -> tuple[int, ...]:
        words, rows = matrix(headers, "qweight")
        groups, _ = matrix(headers, "scales")
        bits = self._bits(headers["qzeros"].shape, rows)
        if words * 32 % bits:
            raise InputError(f"qweight has {words} rows, which hold no whole number of codes of {bits} bits")
        columns = words * 32 // bits
        expect(headers, "qweight", ("I32",), (words, rows))
        expect(headers, "qzeros", ("I32",), (groups, rows * bits // 32))
        expect(headers, "scales", ("F16", "BF16", "F32"), (groups, rows))
        expect(headers, "g_idx", ("I32", "I64"), (columns,))
        size_of_groups(columns, groups, self._group_size)
        return rows, columns

    def _bits(self, zeros: tuple[int, ...], rows: int) -> int:
        bits = zeros[1] * 32 // rows if len(zeros) == 2 else 0
        if not 2 <= bits <= MAX_BITS or bits * rows != zeros[1] * 32:
            raise InputError(f"qzeros has shape {list(zeros)}, which fits no width of 2 to 8 bits for {rows} rows")
        return bits

    def unpack(self, parts: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> Grouped:
        rows, columns = shape
        bits = self._bits(parts["qzeros"].shape, rows)
        scale = np.ascontiguousarray(parts["scales"].T)
        zero = unpacked(parts["qzeros"], bits, rows)
        if self._offset and int(zero.max()) == 2**bits - 1:
            raise InputError("a zero point is stored as the largest code, which libraries read in different ways")
        size = size_of_groups(columns, scale.shape[1], self._group_size)
        order = in_order(parts["g_idx"], size, scale.shape[1]) if "g_idx" in parts else None
        codes = unpacked(parts["qweight"].T, bits, columns)
        return Grouped(codes, bits, scale, np.ascontiguousarray(zero.T) + np.uint8(self._offset), size, order)
