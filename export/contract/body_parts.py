"""What the function bodies of several operators share: the planes of packed codes, groups of columns, scales, products.

One body serves every width: planes that a width does not have are switched off
(layout in export/contract/packing.py). Each function here adds nodes to a body (export/contract/body.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from export.contract.body import Body, Operand, Value
from export.contract.packing import BLOCK_COLUMNS, PLANE_WIDTHS


@dataclass(frozen=True)
class Groups:
    """Which of its row's codebooks a column has: count int64 [], of_column int64 [columns], or [1] if all share it."""

    count: Value
    of_column: Value


def column_groups(b: Body, columns: Value, group_size: Value) -> Groups:
    """group_size: int64 [], columns that share a codebook; 0: all."""
    per_group = b.Where(b.Equal(group_size, 0), columns, group_size)
    count = (columns + per_group - 1) // per_group
    own = b.Where(b.Equal(count, 1), 1, columns)  # one column wide, so that it costs nothing
    group = b.Range(0, columns, 1) // per_group
    return Groups(count, b.Slice(group, [0], b.Reshape(own, [1]), name="group"))


def unpacked(b: Body, row_codes: Value, columns: Value) -> Value:
    """From uint8 [R, bytes of a row] to the codes, uint8 [R, columns]."""
    bits, column = b.attribute("bits"), b.Range(0, columns, 1)
    block = column // BLOCK_COLUMNS
    first = block * BLOCK_COLUMNS
    in_block, width = column - first, b.Min(columns - first, BLOCK_COLUMNS)
    base = block * (bits * (BLOCK_COLUMNS // 8))  # the plane's first byte for every column
    codes = None
    for p in PLANE_WIDTHS:
        has = bits // p % 2  # 1 if the width has the plane
        size = (width * p + 7) // 8
        # A plane that the width does not have shrinks to one column of zero bits, so that it costs nothing.
        stop = b.Reshape((columns - 1) * has + 1, [1])
        field = in_block // size
        places = b.Slice((base + (in_block - field * size)) * has, [0], stop)
        shifts = b.Slice(field * p, [0], stop).astype("uint8")
        mask = (((1 << p) - 1) * has).astype("uint8")
        plane = b.Gather(row_codes, places, axis=1, name=f"bytes_{p}") >> shifts & mask
        codes = plane if codes is None else codes << (p * has).astype("uint8") | plane
        base = base + size * has
    assert codes is not None
    return b.named("code", codes)


def codebook_levels(b: Body, row_codes: Value, row: Value, codebook: Value, columns: Value, groups: Groups) -> Value:
    """From row_codes uint8 [R, bytes of a row] and row (int64 [R]) to the codebook's entries, int8 [R, columns].

    Everything as wide as the matrix is of the narrowest type that holds it, and one column wide where it does not
    depend on the column: onnxruntime keeps all of it at once while it folds constants.
    """
    code = unpacked(b, row_codes, columns)
    book = b.Unsqueeze(row // b.attribute("rows_per_codebook") * groups.count, [1]) + groups.of_column
    first = (book * entries(b, b.attribute("bits")).astype("int64")).astype("int32")
    return b.Gather(b.Reshape(codebook, [-1]), first + code.astype("int32"), name="level")


def entries(b: Body, bits: Value) -> Value:
    """uint32 [], 2**bits."""
    return b.constant(1, "uint32") << bits.astype("uint32")


def row_scales(b: Body, scale: Value, row: Value) -> Value:
    """The scales [R, groups] of these rows, int64 [R]."""
    return b.Gather(scale, row // b.attribute("rows_per_scale"))


def product(b: Body, x: Value, weight: Value) -> Value:
    """X @ W^T."""
    return b.MatMul(x, b.Transpose(weight, perm=[1, 0]))


def all_rows(b: Body) -> Value:
    """int64 [N], the rows' numbers."""
    return b.Range(0, b.attribute("N"), 1, name="row")


def one_dimension(b: Body, *sizes: Operand) -> Value:
    """int64 [n], a shape of these sizes: scalars, or [-1] for what is left."""
    return b.Concat(*(size if isinstance(size, list) else b.Reshape(size, [1]) for size in sizes), axis=0)
