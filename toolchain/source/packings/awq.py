"""AWQ (AutoAWQ, also as AutoRound writes it): 4 bits, eight codes in an int32.

In the layout `gemm`, `qweight` int32 [K, N / 8] and `qzeros` int32 [groups, N / 8] are packed along the rows of the
weight, rows 0 2 4 6 1 3 5 7 of each eight from the lowest bits on, and `scales` are [groups, N]. In `gemv`, `qweight`
int32 [N, K / 8] and `qzeros` int32 [N, groups / 8 or more] are packed along the columns in order, `scales` are
[N, groups or more].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from export.contract.errors import InputError
from toolchain.source.packings.base import Grouped, Header, Packing, Read, expect, matrix, size_of_groups, unpacked

_PER_WORD = 8
_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # where in a word each of eight rows is
_FLOATS = ("F16", "BF16", "F32")


def packing(method: str, raw: dict[str, Any]) -> Packing | None:
    if method == "auto-round" and raw.get("packing_format") == "auto_round:auto_awq":
        return Gemm(raw.get("group_size"))
    if method != "awq":
        return None
    stated = str(raw.get("version") or raw.get("format") or "gemm").lower()
    bits = raw.get("bits", raw.get("w_bit", 4))
    if bits != 4 or stated not in ("gemm", "gemv"):
        raise InputError(
            f"config.json: quantization_config: AWQ with {bits!r} bits in layout {stated!r} cannot be read"
        )
    return (Gemm if stated == "gemm" else Gemv)(raw.get("group_size", raw.get("q_group_size")))


class Gemm(Packing):
    TITLE, FIRST, NEEDED = "AWQ", "qweight", ("qzeros", "scales")

    def __init__(self, group_size: object) -> None:
        self._group_size = group_size

    def shape(self, headers: Mapping[str, Header], read: Read) -> tuple[int, ...]:
        columns, words = matrix(headers, "qweight")
        groups, _ = matrix(headers, "scales")
        expect(headers, "qweight", ("I32",), (columns, words))
        expect(headers, "qzeros", ("I32",), (groups, words))
        expect(headers, "scales", _FLOATS, (groups, words * _PER_WORD))
        size_of_groups(columns, groups, self._group_size)
        return words * _PER_WORD, columns

    def unpack(self, parts: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> Grouped:
        scale, zero = parts["scales"].T, _rows(parts["qzeros"])
        size = size_of_groups(shape[1], scale.shape[1], self._group_size)
        return Grouped(_rows(parts["qweight"]), 4, np.ascontiguousarray(scale), zero, size)


class Gemv(Packing):
    TITLE, FIRST, NEEDED = "AWQ", "qweight", ("qzeros", "scales")

    def __init__(self, group_size: object) -> None:
        self._group_size = group_size

    def shape(self, headers: Mapping[str, Header], read: Read) -> tuple[int, ...]:
        rows, words = matrix(headers, "qweight")
        columns = words * _PER_WORD
        groups, width = self._groups(columns), matrix(headers, "qzeros")[1]
        if width * _PER_WORD < groups:
            raise InputError(f"qzeros has {width} words a row, which do not hold {groups} zero points")
        expect(headers, "qweight", ("I32",), (rows, words))
        expect(headers, "qzeros", ("I32",), (rows, width))
        expect(headers, "scales", _FLOATS, (rows, width * _PER_WORD))
        return rows, columns

    def _groups(self, columns: int) -> int:
        size = self._group_size
        if size == -1:
            return 1
        if type(size) is not int or size <= 0 or columns % size:
            raise InputError(f"config.json: quantization_config: group_size {size!r} does not fit {columns} columns")
        return columns // size

    def unpack(self, parts: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> Grouped:
        groups = self._groups(shape[1])
        zero = unpacked(parts["qzeros"], 4, groups)
        scale = np.ascontiguousarray(parts["scales"][:, :groups])
        return Grouped(unpacked(parts["qweight"], 4, shape[1]), 4, scale, zero, shape[1] // groups)


def _rows(words: np.ndarray) -> np.ndarray:
    """int32 [columns, rows / 8] as codes uint8 [rows, columns]."""
    codes = unpacked(words, 4, words.shape[1] * _PER_WORD).reshape(-1, _PER_WORD)[:, _PLACES]
    return np.ascontiguousarray(codes.reshape(len(words), -1).T)
