"""Experts: a router's picks, products with the picked experts' matrices, and their weighted sum."""

from __future__ import annotations

from collections.abc import Iterator

from runtime_py.engine.layout.products import HIGH_GROUP, HIGH_TOKEN, MAX_ROWS
from runtime_py.engine.records.claims import READ, WRITE, Access, Arrays, Case, Constant
from runtime_py.engine.records.errors import need
from runtime_py.engine.records.record import NONE, REAL, T, dataclass, declared, field
from runtime_py.engine.steps.lookups import grouped_matrix
from runtime_py.engine.steps.products import CodeProduct, Product
from runtime_py.engine.steps.step import Making, Step, rows, whole
from runtime_py.system.paging import PAGE

FLOAT_ROWS = 32  # of a work item of a product in float32
GATHERED = 32  # picks of one expert that its rows are decoded for together


@declared
@dataclass(kw_only=True, eq=False)
class Route(Step[T]):
    """The largest `count` of a softmax over `experts` scores: weights float32 [tokens, count], picked int64 alike.

    Or of the scores' sigmoids plus `biases`, which the weights are without.
    """

    source: T
    stride: T
    experts: T
    count: T
    weights: T
    picked: T
    scale: T = field(metadata=REAL)  # on the weights
    normalised: T = NONE  # whether the weights of a token are divided by their sum and `floor`
    sigmoid: T = NONE
    biases: T = NONE  # address of float32 [experts]
    floor: T = field(default=NONE, metadata=REAL)
    own_scales: T = NONE  # address of float32 [experts]: at last, weights of an expert are multiplied by its own

    def constants(self: Route[int], arrays: Arrays) -> Iterator[Constant]:
        need(not self.biases or bool(self.sigmoid), "biases of a softmax")
        if self.biases:
            yield Constant("biases", self.biases, 4 * self.experts)
        if self.own_scales:
            yield Constant("own_scales", self.own_scales, 4 * self.experts)

    def accesses(self: Route[int], case: Case, arrays: Arrays) -> Iterator[Access]:
        need(1 <= self.count <= self.experts, "more picks than experts")
        yield rows("source", READ, self.source, self.stride, self.experts, case.tokens)
        yield whole("weights", self.weights, self.count, case.tokens)
        yield Access("picked", WRITE, self.picked, 8 * self.count * case.tokens)

    def scratch(self: Route[int], arrays: Arrays) -> int:
        return Step.scratch(self, arrays) + route_bytes(self.experts)


def route_bytes(experts: int) -> int:
    """Beside those of other steps, of a thread's scratch memory: sigmoids, and what is picked by."""
    return 8 * experts


@declared
@dataclass(kw_only=True, eq=False)
class ExpertMatMul(CodeProduct[T]):
    """float32 activations, made integers here, times the rows of picked experts: out [tokens, count, rows].

    The matrix has `experts` times `rows` rows, and as many biases where it has any. A pick that is no number of an
    expert is taken as the nearest that is.
    """

    source: T
    stride: T
    columns: T
    apart: T  # floats between the inputs of a token's picks; 0: all read the same
    picked: T  # int64 [tokens, count]
    count: T
    experts: T
    page: T = NONE  # of the mapped file that the codes are in, bytes, where memory does not hold it (system/paging.py)

    def constants(self: ExpertMatMul[int], arrays: Arrays) -> Iterator[Constant]:
        m = self.stored(arrays)
        need(self.width == m.width and self.row_bytes == m.row_bytes, "a width or row that is not the matrix's")
        need(min(self.experts, self.rows, self.count) >= 1, "a matrix of no experts")
        need(self.experts * self.rows == m.rows and self.columns == m.columns, "experts that are not the matrix's")
        need(not self.accumulate, "a sum that is not made here")
        need(self.page in (0, PAGE), "pages of another size")
        if self.bias:
            yield Constant("bias", self.bias, 4 * self.experts * self.rows)
        yield from m.constants(1, arrays)

    def accesses(self: ExpertMatMul[int], case: Case, arrays: Arrays) -> Iterator[Access]:
        need(self.apart in (0, self.columns), "inputs that overlap")
        read = self.columns * (self.count if self.apart else 1)
        yield rows("source", READ, self.source, self.stride, read, case.tokens)
        yield Access("picked", READ, self.picked, 8 * self.count * case.tokens)
        yield whole("out", self.out, self.count * self.rows, case.tokens)

    def scratch(self: ExpertMatMul[int], arrays: Arrays) -> int:
        return expert_bytes(self.columns) + CodeProduct.scratch(self, arrays)


@dataclass(kw_only=True, eq=False)
class ExpertFloats(Product[T]):
    """float32 activations times the rows of picked experts in float32: out [tokens, count, rows].

    Rows, biases and picks as of ExpertMatMul.
    """

    source: T
    stride: T
    columns: T
    apart: T
    picked: T
    count: T
    experts: T
    page: T = NONE

    def constants(self: ExpertFloats[int], arrays: Arrays) -> Iterator[Constant]:
        need(min(self.experts, self.rows, self.count, self.columns) >= 1, "a matrix of no experts")
        need(self.page in (0, PAGE), "pages of another size")
        if self.bias:
            yield Constant("bias", self.bias, 4 * self.experts * self.rows)

    def accesses(self: ExpertFloats[int], case: Case, arrays: Arrays) -> Iterator[Access]:
        need(self.apart in (0, self.columns), "inputs that overlap")
        read = self.columns * (self.count if self.apart else 1)
        yield rows("source", READ, self.source, self.stride, read, case.tokens)
        yield Access("picked", READ, self.picked, 8 * self.count * case.tokens)
        yield whole("out", self.out, self.count * self.rows, case.tokens, self.accumulate)

    def scratch(self: ExpertFloats[int], arrays: Arrays) -> int:
        return expert_float_bytes(self.columns)


@declared
@dataclass(kw_only=True, eq=False)
class ExpertGrouped(ExpertFloats[T]):
    """The matrix has several codebooks along each row."""

    matrix: T
    groups: T
    group_size: T

    def constants(self: ExpertGrouped[int], arrays: Arrays) -> Iterator[Constant]:
        m = grouped_matrix(self.matrix, self.groups, self.group_size, arrays)
        need(self.experts * self.rows == m.rows and self.columns == m.columns, "experts that are not the matrix's")
        yield from m.constants(self.groups, arrays)
        yield from ExpertFloats.constants(self, arrays)


@declared
@dataclass(kw_only=True, eq=False)
class ExpertDense(ExpertFloats[T]):
    """The matrix is float16 or float32."""

    weights: T  # [experts * rows, columns]
    item_bytes: T

    def constants(self: ExpertDense[int], arrays: Arrays) -> Iterator[Constant]:
        need(self.item_bytes in (2, 4), "a matrix of other numbers")
        yield Constant("weights", self.weights, self.item_bytes * self.columns * self.experts * self.rows)
        yield from ExpertFloats.constants(self, arrays)


def expert_float_bytes(columns: int) -> int:
    """Of a thread's scratch memory: inputs of GATHERED picks and what is made of them, and a row with its codes."""
    return GATHERED * (8 + 4 * FLOAT_ROWS + 4 * columns) + 4 * columns + 256


def expert_bytes(columns: int) -> int:
    """Beside those of other products, of a thread's scratch memory: inputs of one token or of GATHERED picks."""
    blocks, wide = -(-columns // 256), -(-columns // 64) * 64
    one = wide + 128 * blocks + HIGH_TOKEN * blocks
    several = GATHERED * (8 + 4 * MAX_ROWS + 5 * wide + 8 * blocks) + GATHERED // 16 * HIGH_GROUP * blocks
    return max(one, several)


@declared
@dataclass(kw_only=True, eq=False)
class Combine(Making[T]):
    """out = the sum of `count` parts of a row, each times its weight."""

    source: T
    stride: T
    weights: T  # float32 [tokens, count]
    count: T
    columns: T

    def accesses(self: Combine[int], case: Case, arrays: Arrays) -> Iterator[Access]:
        need(self.count >= 1, "a sum of nothing")
        yield rows("source", READ, self.source, self.stride, self.count * self.columns, case.tokens)
        yield rows("weights", READ, self.weights, self.count, self.count, case.tokens)
        yield whole("out", self.out, self.columns, case.tokens)
