"""What a source stores as codes already, in our formats and without loss: nothing is searched or rounded.

Every matrix that comes out is compared with what the source stands for, bit by bit.
"""

from __future__ import annotations

import numpy as np

from export.artefacts.stored_matrix import StoredMatrix
from export.contract.errors import InputError
from export.contract.formats.groups import MINIMA, ONE_ZERO, ZEROS, GroupsLayout
from export.contract.formats.mxfp4 import LARGEST_SCALE, Mxfp4Layout
from export.contract.packing import pack
from toolchain.source.checkpoint import SourceModel
from toolchain.source.group_codes import GroupCodes
from toolchain.source.packings.base import Microscaled

_KEPT = "GGUF's Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and ternary types, integers with group scales (GPTQ, AWQ, "
_KEPT += "compressed-tensors) and MXFP4 are kept"


def kept_matrix(source: SourceModel, module: str, weights: np.ndarray) -> StoredMatrix | None:
    """What the source stores for a module's weight; None where that is plain floats.

    weights: float32 [N, K] that the module has. Raises InputError where the source's form cannot be kept exactly.
    """
    name = f"{module}.weight"
    form = source.stored_form(name)
    if not form:
        return None
    codes, blocks = source.group_codes(name), source.mxfp4_blocks(name)
    try:
        if codes is not None:
            found = kept(codes)
        elif blocks is not None:
            found = kept_mxfp4(blocks)
        else:
            raise ValueError(_KEPT)
    except ValueError as error:
        raise InputError(f"{source.where}: {name} is stored as {form}, which cannot be kept exactly: {error}") from None
    if not _same(found.dequantized(), weights):
        raise InputError(f"{source.where}: {name} ({form}) is not what the model computes with; it cannot be kept")
    return found


def group_matrix(source: SourceModel, module: str, weights: np.ndarray, first: int) -> StoredMatrix | None:
    """Rows `first` and those after it of a module's weight, where the source has it as codes with group scales.

    weights: float32 [N, K], those rows. None where it has not, or `groups` cannot hold it exactly.
    """
    codes = source.group_codes(f"{module}.weight")
    if codes is None:
        return None
    try:
        found = kept(codes.rows(np.arange(first, len(codes.codes))))
    except ValueError:
        return None
    return found if _same(found.dequantized(), weights) else None


def narrowest(values: np.ndarray) -> np.ndarray:
    """float16 where that holds every one of these float32 numbers exactly, else as they are."""
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    return halves if np.array_equal(halves.astype(np.float32), values) else np.ascontiguousarray(values, np.float32)


def kept(found: GroupCodes) -> StoredMatrix:
    """The matrix in the format `groups`. Raises ValueError where that cannot hold it."""
    rows, columns = found.codes.shape
    offsets, offset = _offset(found)
    layout = GroupsLayout(found.bits, columns, rows, found.group_size, offsets)
    parts = {"codes": pack(found.codes, found.bits), "scale": narrowest(found.scale), "offset": offset}
    layout.check(*parts.values())
    return StoredMatrix(layout, parts)


def kept_mxfp4(found: Microscaled) -> StoredMatrix:
    """The matrix in the format `mxfp4`. Raises ValueError where that cannot hold it."""
    if int(found.exponents.max(initial=0)) > LARGEST_SCALE:
        raise ValueError(f"an exponent is above {LARGEST_SCALE}")
    rows, columns = found.codes.shape
    layout = Mxfp4Layout(4, columns, rows)
    parts = {"codes": pack(found.codes, 4), "scale": np.ascontiguousarray(found.exponents)}
    layout.check(*parts.values())
    return StoredMatrix(layout, parts)


def _offset(found: GroupCodes) -> tuple[int, np.ndarray]:
    """`offsets` and the part of that name: one zero point where all are the same and that can be."""
    if found.zero is None and found.minimum is not None:
        return MINIMA, narrowest(found.minimum)
    zero = np.asarray(0 if found.zero is None else found.zero, np.int64)
    first = int(zero.flat[0])
    if (zero == first).all() and (found.bits < 8 or first == 128):
        return ONE_ZERO, np.full((1, 1), first, np.uint8)
    return ZEROS, np.ascontiguousarray(np.broadcast_to(zero, found.scale.shape), np.uint8)


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether float32 arrays have the same shape and bits."""
    first, second = (np.ascontiguousarray(x, np.float32).view(np.uint32) for x in (a, b))
    return np.array_equal(first, second)
