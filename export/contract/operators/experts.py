"""Products with the matrices of the experts that a router picked for each token. Numpy only.

ExpertNAME(X, expert, parts...) -> Y, NAME being a product of a weight format, such as CodebookMatMul
ExpertMatMul(X, expert, weight) -> Y, the same with weights as they are
    X       float32 [batch, sequence, k or 1, K]; 1: all picked experts of a token read the same
    expert  int64 [batch, sequence, k], each 0 to experts - 1
    parts   of one matrix W [experts * rows, K], expert after expert, in the format
    weight  W itself, float16 or float32
    Y       float32 [batch, sequence, k, rows]
    Y[b, s, j] = X[b, s, j or 0] @ W[expert[b, s, j] * rows : (expert[b, s, j] + 1) * rows]^T

Attributes: those of the format (N being experts * rows; of ExpertMatMul K and N), and experts. No codebook and no scale
is shared by two experts: what every format calls rows_per_... divides rows. So each expert can be read alone, and the
function bodies gather the parts of those that some token has before they expand anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from export.contract.body import Body, Value, function_proto
from export.contract.body_parts import one_dimension
from export.contract.formats import FORMATS, Layout, operator_layout
from export.contract.formats.base import DOMAIN, FLOATS, LARGEST, OPSET, Part, field_names

if TYPE_CHECKING:
    import onnx

_PREFIX = "Expert"
EXPERT_MATMUL = "ExpertMatMul"  # with weights as they are
_BY_ROWS = {scheme: kind for scheme, kind in FORMATS.items() if kind.OPERATOR and kind.BY_ROWS}
EXPERT_PRODUCTS = frozenset({EXPERT_MATMUL, *(_PREFIX + kind.OPERATOR for kind in _BY_ROWS.values())})
MOST_EXPERTS = 1 << 16


def expert_operator(layout: Layout) -> str:
    """The name of the product with experts in this format. Raises ValueError where it has none."""
    if not layout.OPERATOR:
        raise ValueError(f"{layout.SCHEME} has no product with float activations")
    if not layout.BY_ROWS:
        raise ValueError(f"{layout.SCHEME} does not lie by rows, so no expert can be read alone")
    return _PREFIX + layout.OPERATOR


@dataclass(frozen=True)
class ExpertLayout:
    """The attributes of one such product."""

    experts: int
    K: int
    N: int  # rows of all experts
    stored: Layout | None  # of all of them as one matrix; None: weights as they are

    def __post_init__(self) -> None:
        """Raises ValueError or TypeError when an attribute is out of range or the experts are not apart."""
        for name, most in (("experts", MOST_EXPERTS), ("K", LARGEST), ("N", LARGEST)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | np.integer):
                raise TypeError(f"{name} must be a whole number, not {value!r}")
            if not 1 <= value <= most:
                raise ValueError(f"{name} must be 1 to {most}, not {value}")
        if self.N % self.experts:
            raise ValueError(f"N ({self.N}) must be a multiple of experts ({self.experts})")
        for name in field_names(type(self.stored)) if self.stored is not None else ():
            if name.startswith("rows_per_") and self.rows % getattr(self.stored, name):
                raise ValueError(f"{name} ({getattr(self.stored, name)}) must divide the {self.rows} rows of an expert")

    @staticmethod
    def of(op_type: str, attributes: Mapping[str, Any]) -> ExpertLayout:
        """From a node of EXPERT_PRODUCTS, untrusted. Raises KeyError, TypeError or ValueError."""
        experts = attributes["experts"]
        if op_type == EXPERT_MATMUL:
            return ExpertLayout(experts, attributes["K"], attributes["N"], None)
        stored = operator_layout(op_type.removeprefix(_PREFIX), attributes)
        return ExpertLayout(experts, stored.K, stored.N, stored)

    @property
    def rows(self) -> int:
        """Of one expert."""
        return self.N // self.experts

    @property
    def operator(self) -> str:
        return EXPERT_MATMUL if self.stored is None else expert_operator(self.stored)

    def attributes(self) -> dict[str, int]:
        own = {"K": self.K, "N": self.N} if self.stored is None else self.stored.attributes()
        return {**own, "experts": self.experts}

    def parts(self) -> dict[str, Part]:
        """The stored arrays by name, in the order of the operator's inputs after X and expert."""
        return {"weight": Part((self.N, self.K), FLOATS)} if self.stored is None else self.stored.parts()

    def single(self) -> Layout | None:
        """Of one expert's matrix; None: weights as they are."""
        return None if self.stored is None else replace(self.stored, N=self.rows)

    def parts_of(self, expert: int, *arrays: np.ndarray) -> list[np.ndarray]:
        """What is stored for one expert: runs of rows of each part, not copied."""
        found = []
        for array in arrays:
            rows = len(array) // self.experts
            found.append(array[expert * rows : (expert + 1) * rows])
        return found

    def check(self, *arrays: np.ndarray) -> None:
        """Raises ValueError when an array does not have the dtype, shape or range that the format asks for."""
        if self.stored is not None:
            self.stored.check(*arrays)
        elif arrays[0].dtype.name not in FLOATS or arrays[0].shape != (self.N, self.K):
            found = f"{arrays[0].dtype.name} {list(arrays[0].shape)}"
            raise ValueError(f"weight is {found}, expected {' or '.join(FLOATS)} {[self.N, self.K]}")

    def check_inputs(self, x: tuple[int, ...], expert: np.ndarray) -> None:
        """Raises ValueError when X of shape `x` and the picked experts do not fit each other or the weights."""
        fits = len(x) == 4 and expert.ndim == 3 and x[:2] == expert.shape[:2] and x[3] == self.K
        if not fits or x[2] not in (1, expert.shape[2]):
            raise ValueError(f"X {list(x)} and experts {list(expert.shape)} do not fit {self.K} columns")
        if expert.size and not (int(expert.min()) >= 0 and int(expert.max()) < self.experts):
            raise ValueError(f"an expert outside 0..{self.experts - 1}")


def expert_matmul(x: np.ndarray, expert: np.ndarray, layout: ExpertLayout, *arrays: np.ndarray) -> np.ndarray:
    """Reference of all of them: float32 [batch, sequence, k, rows]. Raises ValueError where something does not fit."""
    layout.check_inputs(x.shape, expert)
    layout.check(*arrays)
    weights = arrays[0].astype(np.float32) if layout.stored is None else layout.stored.dequantized(*arrays)
    by_expert = weights.reshape(layout.experts, layout.rows, layout.K)
    wide = np.broadcast_to(x, (*expert.shape, layout.K))
    out = np.zeros((*expert.shape, layout.rows), np.float32)
    for number in np.unique(expert):
        out[expert == number] = wide[expert == number] @ by_expert[number].T
    return out


def expert_functions(schemes: frozenset[str]) -> list[onnx.FunctionProto]:
    """Function bodies of the products with experts in these formats; "float16" and "float32": weights as they are."""
    found = [_of_format(scheme) for scheme in _BY_ROWS if scheme in schemes]
    return [*found, _of_floats()] if schemes.intersection(FLOATS) else found


@cache
def _of_format(scheme: str) -> onnx.FunctionProto:
    kind = FORMATS[scheme]

    def write(b: Body, x: Value, expert: Value, *parts: Value) -> Value:
        picks, rows = _picks(b, expert), b.attribute("N") // b.attribute("experts")
        some = [b.named(f"chosen_{name}", _of_chosen(b, part, picks.chosen)) for name, part in zip(kind.PARTS, parts)]
        b.replace("N", picks.experts * rows)
        return _products(b, x, expert, b.named("weight", kind.body(b, *some)), picks, rows)

    attributes = [*field_names(kind), "experts"]
    inputs = ("X", "expert", *kind.PARTS)
    return function_proto(DOMAIN, OPSET, _PREFIX + kind.OPERATOR, inputs, attributes, write)


@cache
def _of_floats() -> onnx.FunctionProto:
    def write(b: Body, x: Value, expert: Value, weight: Value) -> Value:
        picks, rows = _picks(b, expert), b.attribute("N") // b.attribute("experts")
        return _products(b, x, expert, _of_chosen(b, weight, picks.chosen).astype("float32"), picks, rows)

    inputs = ("X", "expert", "weight")
    return function_proto(DOMAIN, OPSET, EXPERT_MATMUL, inputs, ("K", "N", "experts"), write)


@dataclass(frozen=True)
class _Picks:
    """What the tokens picked."""

    chosen: Value  # the experts that some token has, int64 [U], rising
    experts: Value  # U, int64 []
    place: Value  # of every pick, which of them it is, int64 [tokens * k]


def _picks(b: Body, expert: Value) -> _Picks:
    picks = b.Reshape(expert, [-1], name="picks")
    nothing = b.Expand(0, b.Reshape(b.attribute("experts"), [1]))
    hit = b.ScatterElements(nothing, picks, b.Expand(1, b.Shape(picks)), axis=0, name="hit")
    chosen = b.Reshape(b.NonZero(hit), [-1], name="chosen")
    return _Picks(chosen, b.Size(chosen), b.Gather(b.CumSum(hit, 0) - 1, picks, axis=0, name="place"))


def _of_chosen(b: Body, part: Value, chosen: Value) -> Value:
    """The rows of a part that belong to the chosen experts, one expert after another."""
    inner = b.Shape(part, start=1)
    by_expert = b.Reshape(part, b.Concat(b.Reshape(b.attribute("experts"), [1]), [-1], inner, axis=0))
    return b.Reshape(b.Gather(by_expert, chosen, axis=0), b.Concat([-1], inner, axis=0))


def _products(b: Body, x: Value, expert: Value, weight: Value, picks: _Picks, rows: Value) -> Value:
    """One batch of products, in which each chosen expert has the inputs of its own picks. weight: [U * rows, K]."""
    columns, count = b.attribute("K"), b.Size(picks.place)
    inputs = b.Reshape(x, one_dimension(b, [-1], columns), name="inputs")
    given = b.Squeeze(b.Shape(inputs, start=0, end=1), [0])
    reader = b.Range(0, count, 1) * given // count  # the input of each pick
    own = b.Unsqueeze(picks.place, [1])
    is_own = b.Equal(own, b.Range(0, picks.experts, 1)).astype("int64")
    slot = b.ReduceSum(b.CumSum(is_own, 0) * is_own, [1], keepdims=0, name="slot") - 1  # among those of its expert
    most = b.ReduceMax(slot, keepdims=0) + 1
    place = b.named("place_in_batch", picks.place * most + slot)
    nothing = b.Expand(0, b.Reshape(picks.experts * most, [1]))
    batch = b.Gather(inputs, b.ScatterElements(nothing, place, reader, axis=0), axis=0)
    shape = one_dimension(b, picks.experts, most, columns)
    by_expert = b.Reshape(weight, one_dimension(b, picks.experts, rows, columns))
    out = b.MatMul(b.Reshape(batch, shape, name="batch"), b.Transpose(by_expert, perm=[0, 2, 1]), name="products")
    found = b.Gather(b.Reshape(out, one_dimension(b, [-1], rows)), place, axis=0)
    return b.Reshape(found, b.Concat(b.Shape(expert), b.Reshape(rows, [1]), axis=0))
