"""ONNX's numbers for element types."""

from __future__ import annotations

import numpy as np

FLOAT = 1
_COMMON = {
    number: np.dtype(name)
    for number, name in {
        FLOAT: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool",
        10: "float16", 11: "float64", 12: "uint32", 13: "uint64",
    }.items()
}  # fmt: skip


def is_common(number: int) -> bool:
    """Whether numbers of a type lie in a file as they lie in memory here."""
    return number in _COMMON


def dtype_of(number: int) -> np.dtype:
    """The type of arrays. Raises KeyError or TypeError where there is none."""
    if number in _COMMON:
        return _COMMON[number]
    import onnx  # which knows the rare ones

    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(number))
