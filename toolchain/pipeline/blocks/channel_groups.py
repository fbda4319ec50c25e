"""Activations in channel groups (Tender): what calibration fixes for each layer, and one order for layers in a row.

Channels are multiplied in the order of their groups (export/contract/operators/tender.py). Where a layer's input comes
from the rows of others with nothing but elementwise arithmetic between, those rows are put into that order, and the
channels come sorted: up and gate before down. Elsewhere channels are gathered while they are quantized: the residual
stream has one order for all that read it, heads keep their channels together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from export.artefacts.stored_matrix import StoredMatrix
from export.contract.errors import InputError
from export.contract.formats.codebook import CodebookLayout
from export.contract.operators.tender import calibrated, channel_order
from export.contract.packing import pack, unpack
from export.graph.spec import BlockNames
from export.graph.tender import MIDDLE_PRODUCT, MIDDLES, SHIFTS, UNIT
from toolchain.calibrate.ranges import Ranges

Arrays = dict[str, np.ndarray]


def calibrated_groups(ranges: Ranges, weights: Mapping[str, np.ndarray], groups: int, width: int) -> Arrays:
    """What is stored for the layers with these weights float [N, K], by name.

    Raises InputError for ranges that are not finite.
    """
    found: Arrays = {}
    for name, own in weights.items():
        low, high = ranges.channels[name]
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise InputError(f"calibration: {name} has inputs that are not finite")
        middle, shifts, unit = calibrated(low, high, groups, width)
        found |= {
            f"{name}.{UNIT}": np.array([unit]),
            f"{name}.{MIDDLES}": middle,
            f"{name}.{SHIFTS}": shifts,
            f"{name}.{MIDDLE_PRODUCT}": own.astype(np.float64) @ middle,
        }
    return found


def sorted_rows(
    names: BlockNames, results: Mapping[str, StoredMatrix], arrays: Arrays, vectors: Arrays
) -> tuple[dict[str, StoredMatrix], Arrays, Arrays]:
    """The same block with up's and gate's rows in the order of down's groups, where their format allows it.

    results: stored matrices by name; arrays: from calibrated_groups; vectors: biases by their full names in the block.
    """
    readers = [name for name in (names.gate, names.up) if name is not None]
    able = names.down in results and readers and all(name in results and _by_row(results[name]) for name in readers)
    if not able or names.experts is not None or names.shared.gate_up or names.gate_cut is not None:
        return dict(results), arrays, vectors
    down = str(names.down)
    if not isinstance(results[down].layout, CodebookLayout) or results[down].layout.groups != 1:  # type: ignore[attr-defined]
        return dict(results), arrays, vectors
    order, _ = channel_order(arrays[f"{down}.{SHIFTS}"].astype(np.uint8), 1)
    if order.size != results[readers[0]].layout.N or order.size != results[readers[-1]].layout.N:
        return dict(results), arrays, vectors
    changed = dict(results)
    for name in readers:
        parts = results[name].parts
        own = {"codes": parts["codes"][order], "codebook": parts["codebook"], "scale": parts["scale"][order]}
        changed[name] = replace(results[name], parts=own)
    layout = results[down].layout
    codes = unpack(results[down].parts["codes"], layout.bits, layout.K)[:, order]
    changed[down] = replace(results[down], parts={**results[down].parts, "codes": pack(codes, layout.bits)})
    moved = {f"{down}.{part}" for part in (MIDDLES, SHIFTS)} | {f"{name}.{MIDDLE_PRODUCT}" for name in readers}
    biases = {f"{name}.bias" for name in readers}
    return (
        changed,
        {name: array[order] if name in moved else array for name, array in arrays.items()},
        {name: array[order] if name in biases else array for name, array in vectors.items()},
    )


def _by_row(matrix: StoredMatrix) -> bool:
    """Whether its rows can change places: one codebook for all, a plain scale for each."""
    layout = matrix.layout
    return (
        isinstance(layout, CodebookLayout)
        and (layout.groups, layout.rows_per_scale) == (1, 1)
        and layout.rows_per_codebook >= layout.N
        and not matrix.coded
        and matrix.low_rank is None
        and matrix.outliers is None
    )
