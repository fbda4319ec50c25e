"""compressed-tensors `pack-quantized`: whole numbers of 2 to 8 bits with one scale for a row, a group or the matrix.

`weight_packed` int32 [N, ceil(K * bits / 32)] is a dense stream of bits along each row, codes being the signed numbers
plus 2 ** (bits - 1); `weight_zero_point` int32 [ceil(N * bits / 32), groups] is such a stream along the rows, absent
where quantization is symmetric. `weight_shape` is [N, K]; `weight_g_idx` gives the group of each column, or is -1.
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
    small,
    unpacked,
)

FORMAT = "pack-quantized"
_INTEGERS = ("I32", "I64")


def packing(method: str, raw: dict[str, Any]) -> Packing | None:
    """Other formats of compressed-tensors keep a weight in one tensor."""
    groups = raw.get("config_groups")
    groups = [group for group in groups.values() if isinstance(group, dict)] if isinstance(groups, dict) else []
    if method != "compressed-tensors" or FORMAT not in (raw.get("format"), *(group.get("format") for group in groups)):
        return None
    weights = [group.get("weights") for group in groups]
    return PackQuantized([scheme for scheme in weights if isinstance(scheme, dict) and scheme.get("type") != "float"])


class PackQuantized(Packing):
    TITLE, FIRST = "compressed-tensors pack-quantized", "weight_packed"
    NEEDED, OPTIONAL = ("weight_scale", "weight_shape"), ("weight_zero_point", "weight_g_idx")

    def __init__(self, schemes: list[dict[str, Any]]) -> None:
        """schemes: what the config says of weights, one for each group of layers."""
        self._schemes = schemes

    def shape(self, headers: Mapping[str, Header], read: Read) -> tuple[int, ...]:
        rows, words = matrix(headers, "weight_packed")
        expect(headers, "weight_packed", ("I32",), (rows, words))
        expect(headers, "weight_shape", _INTEGERS, (2,))
        stated = [int(size) for size in small(headers, "weight_shape", read, 2)]
        if stated[0] != rows or not 0 < stated[1] <= words * 32:
            raise InputError(f"weight_shape is {stated}, which {rows} x {words} packed words do not fit")
        scheme, columns = self._scheme(words, stated[1]), stated[1]
        groups = self._scales(headers["weight_scale"].shape, rows)
        expect(headers, "weight_scale", ("F16", "BF16", "F32"), headers["weight_scale"].shape)
        if scheme.get("symmetric", True) is not ("weight_zero_point" not in headers):
            raise InputError("weight_zero_point and the field symmetric in config.json do not go together")
        expect(headers, "weight_zero_point", ("I32",), (-(-rows * scheme["num_bits"] // 32), groups))
        expect(headers, "weight_g_idx", _INTEGERS, (columns,))
        size_of_groups(columns, groups, scheme.get("group_size"))
        return rows, columns

    def _scheme(self, words: int, columns: int) -> dict[str, Any]:
        """What the config says of layers with rows of this many words: the schemes that fit must agree."""
        fit = [
            scheme
            for scheme in self._schemes
            if type(bits := scheme.get("num_bits")) is int
            and 2 <= bits <= MAX_BITS
            and words == -(-columns * bits // 32)
        ]
        told = {(scheme["num_bits"], str(scheme.get("group_size")), scheme.get("symmetric", True)) for scheme in fit}
        if len(told) != 1:
            what = "no" if not told else "more than one"
            raise InputError(f"{what} scheme of config_groups fits {columns} columns in {words} packed words")
        return fit[0]

    def _scales(self, shape: tuple[int, ...], rows: int) -> int:
        """How many groups a row has."""
        if shape in ((), (1,)):
            return 1
        if len(shape) != 2 or shape[0] not in (rows, 1) or shape[1] == 0 or (shape[0] != rows and shape[1] != 1):
            raise InputError(f"weight_scale has shape {list(shape)}, which does not fit {rows} rows")
        return shape[1]

    def unpack(self, parts: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> Grouped:
        rows, columns = shape
        scheme = self._scheme(parts["weight_packed"].shape[1], columns)
        bits: int = scheme["num_bits"]
        scale = parts["weight_scale"]
        groups = self._scales(scale.shape, rows)
        scale = np.ascontiguousarray(np.broadcast_to(scale.reshape(-1, groups), (rows, groups)))
        zero: np.ndarray | int = 1 << (bits - 1)
        if "weight_zero_point" in parts:
            zero = np.ascontiguousarray(unpacked(parts["weight_zero_point"].T, bits, rows).T)
        size, order = size_of_groups(columns, groups, scheme.get("group_size")), None
        if "weight_g_idx" in parts and not (parts["weight_g_idx"] == -1).all():
            order = in_order(parts["weight_g_idx"], size, groups)
        return Grouped(unpacked(parts["weight_packed"], bits, columns), bits, scale, zero, size, order)
