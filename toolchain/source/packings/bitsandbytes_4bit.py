"""bitsandbytes 4-bit (`nf4`, `fp4`): codes of a table, with the largest magnitude of each block of the flat weight.

`weight` uint8 has two codes a byte, the first in the high half. `absmax` is float32, or uint8 codes of a table of 256
(`nested_quant_map`) with magnitudes of their own (`nested_absmax`, for each 256 by default) and an offset; the rest is
JSON in `quant_state`. Steps, order and rounding are those of bitsandbytes in float32; it goes by its own tables, not
by the `quant_map` that is stored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Container, Mapping
from typing import Any

import numpy as np

from export.contract.errors import InputError
from toolchain.source.packings.base import Header, Packing, Read, Values, expect, small

_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_FP4 = tuple(sign * level / 12 for sign in (1, -1) for level in (0, 0.0625, 8, 12, 4, 6, 2, 3))
_TABLES = {"nf4": np.array(_NF4, np.float32), "fp4": np.array(_FP4, np.float32)}
_LONGEST_STATE = 1 << 16
_LARGEST = 1 << 20  # of a block
_STATES = tuple(f"weight.quant_state.bitsandbytes__{kind}" for kind in _TABLES)


def packing(method: str, raw: dict[str, Any]) -> Packing | None:
    return Bitsandbytes4() if method == "bitsandbytes 4-bit" else None


class Bitsandbytes4(Packing):
    TITLE, FIRST, NEEDED = "bitsandbytes 4-bit", "weight.absmax", ("weight", "weight.quant_map")
    OPTIONAL = (*_STATES, "weight.nested_absmax", "weight.nested_quant_map")

    def shape(self, headers: Mapping[str, Header], read: Read) -> tuple[int, ...]:
        for name in _STATES:
            if name in headers:
                small(headers, name, read, _LONGEST_STATE)
        kind, state = _state(headers, read)
        shape: Any = state.get("shape")
        whole = isinstance(shape, list) and 1 <= len(shape) <= 2 and all(type(n) is int and n > 0 for n in shape)
        if not whole or math.prod(shape) != 2 * math.prod(headers["weight"].shape):
            raise InputError(
                f"quant_state: shape {shape!r} does not fit {list(headers['weight'].shape)} bytes of codes"
            )
        blocks = -(-math.prod(shape) // _size(state, "blocksize"))
        expect(headers, "weight", ("U8",), headers["weight"].shape)
        table = small(headers, "weight.quant_map", read, 16)
        if table.shape != (16,) or not np.allclose(table, _TABLES[kind], rtol=0, atol=1e-4):
            raise InputError(f"quant_map is not the table of {kind}")
        nested = "weight.nested_absmax" in headers
        expect(headers, "weight.absmax", ("U8",) if nested else ("F32",), (blocks,))
        if nested:
            if type(state.get("nested_offset")) is not float or "weight.nested_quant_map" not in headers:
                raise InputError("quant_state: nested_offset, or nested_quant_map, is missing")
            outer = -(-blocks // _size(state, "nested_blocksize"))
            expect(headers, "weight.nested_absmax", ("F32",), (outer,))
            expect(headers, "weight.nested_quant_map", ("F32",), (256,))
        return tuple(shape)

    def unpack(self, parts: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> Values:
        kind, state = _state(parts, lambda name: parts[name])
        magnitude = parts["weight.absmax"]
        if "weight.nested_absmax" in parts:
            spread = np.repeat(parts["weight.nested_absmax"], _size(state, "nested_blocksize"))[: len(magnitude)]
            magnitude = parts["weight.nested_quant_map"][magnitude] * spread + np.float32(state["nested_offset"])
        packed = parts["weight"].reshape(-1)
        found = _TABLES[kind][np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)]
        size = _size(state, "blocksize")
        whole = len(found) // size * size
        found[:whole].reshape(-1, size)[:] *= magnitude[: whole // size, None]
        found[whole:] *= magnitude[-1]
        return Values(found.reshape(shape))


def _state(present: Container[str], read: Read) -> tuple[str, dict[str, Any]]:
    """nf4 or fp4, and the JSON object. Raises InputError when it is missing or no such object."""
    names = [name for name in _STATES if name in present]
    if len(names) != 1:
        raise InputError("quant_state is missing, or there twice")
    try:
        state = json.loads(read(names[0]).tobytes().decode("utf-8"))
    except (ValueError, RecursionError):
        state = None
    if not isinstance(state, dict):
        raise InputError("quant_state is not a JSON object")
    kind = names[0].rpartition("__")[2]
    if state.get("quant_type") != kind:
        raise InputError(f"quant_state: quant_type is {state.get('quant_type')!r}, its name says {kind}")
    return kind, state


def _size(state: dict[str, Any], field: str) -> int:
    value = state.get(field)
    if type(value) is not int or not 1 <= value <= _LARGEST:
        raise InputError(f"quant_state: {field} must be a whole number up to {_LARGEST}, not {value!r}")
    return value
