"""A factor on the queries that grows with their position, put into the cos and sin that turn them.

The same rotation without the factor turns the keys. Only for rotations of whole heads: other channels would not grow.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from export.graph.layers import BATCH, SEQUENCE
from export.graph.spec import QueryGrowth
from export.graph.writer import Dim, GraphWriter

Rotation = tuple[ir.Value, ir.Value]  # cos and sin, float [batch, sequence, rotated / 2]


def grown_rotations(
    g: GraphWriter, growth: QueryGrowth | None, rotations: tuple[Rotation | None, ...], position_ids: ir.Value
) -> Iterator[Rotation | None]:
    """For each rotation that of the queries; None where it is that of the keys, or there is none."""
    made: dict[int, Rotation] = {}
    for rotation in rotations:
        if growth is None or rotation is None:
            yield None
            continue
        if id(rotation[0]) not in made:
            name = f"/model/query_growth/rotation_{len(made)}"
            factor = _factor(g, growth, position_ids, f"{name}/factor")
            shape: list[Dim] = [BATCH, SEQUENCE, int(rotation[0].shape[-1])]  # type: ignore[index, arg-type]
            cos, sin = (g.op("Mul", f"{name}/{n}", [v, factor], shape) for n, v in zip("cs", rotation))
            made[id(rotation[0])] = cos, sin
        yield made[id(rotation[0])]


def _factor(g: GraphWriter, growth: QueryGrowth, position_ids: ir.Value, at: str) -> ir.Value:
    """1 + beta * ln(1 + floor(position / length)), float [batch, sequence, 1]."""
    shape: list[Dim] = [BATCH, SEQUENCE]
    numbers = {"length": growth.length, "beta": growth.beta, "one": 1.0}
    length, beta, one = (g.constant(f"query_growth.{n}", np.asarray(v, np.float32)) for n, v in numbers.items())
    position = g.op("Cast", f"{at}/position", [position_ids], shape, to=ir.DataType.FLOAT)
    quotient = g.op("Div", f"{at}/quotient", [position, length], shape)
    lengths = g.op("Add", f"{at}/lengths", [g.op("Floor", f"{at}/whole", [quotient], shape), one], shape)
    grown = g.op("Mul", f"{at}/grown", [g.op("Log", f"{at}/log", [lengths], shape), beta], shape)
    factor = g.op("Add", at, [grown, one], shape)
    last = g.constant("axis.last", np.asarray([-1], np.int64))
    return g.op("Unsqueeze", f"{at}/column", [factor, last], [*shape, 1])
