"""compressed-tensors `mxfp4-pack-quantized`: 4-bit floats (E2M1), 32 neighbours with one power of two (OCP MX).

`weight_packed` uint8 [N, K / 2] has the first of two codes in the low half, `weight_scale` uint8 [N, K / 32] is the
exponent plus 127.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from export.contract.errors import InputError
from toolchain.source.packings.base import Header, Microscaled, Packing, Read, expect, matrix

FORMAT = "mxfp4-pack-quantized"
_GROUP = 32


def packing(method: str, raw: dict[str, Any]) -> Packing | None:
    return MxFp4() if method == "compressed-tensors" and raw.get("format") == FORMAT else None


class MxFp4(Packing):
    TITLE, FIRST, NEEDED = "MXFP4", "weight_packed", ("weight_scale",)

    def shape(self, headers: Mapping[str, Header], read: Read) -> tuple[int, ...]:
        rows, width = matrix(headers, "weight_packed")
        if width * 2 % _GROUP:
            raise InputError(f"weight_packed has {width} columns, no multiple of {_GROUP // 2}")
        expect(headers, "weight_packed", ("U8",), (rows, width))
        expect(headers, "weight_scale", ("U8", "F8_E8M0"), (rows, width * 2 // _GROUP))
        return rows, width * 2

    def unpack(self, parts: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> Microscaled:
        packed, exponents = parts["weight_packed"], parts["weight_scale"]
        codes = np.stack([packed & 15, packed >> 4], axis=2).reshape(shape)
        if int(exponents.max()) == 255:
            raise InputError("weight_scale holds 255, which stands for no number")
        return Microscaled(codes, exponents)
